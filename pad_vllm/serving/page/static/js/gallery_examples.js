/** Each was run on the model that it names, greedily, and chosen since its two answers visibly differ. */
export const EXAMPLES = [
  {
    prompt: "What should I know before I get a dog?",
    note: "Lists become warmth.",
    weights: { friendly: 1 },
    models: ["smollm2"],
  },
];
