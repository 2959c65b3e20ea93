"""What the scripts share: command lines, answers drawn once, judges, timed engines, random adapters."""
