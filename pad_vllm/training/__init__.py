"""From sampled, scored responses to a reward adapter: sample, score, train."""
