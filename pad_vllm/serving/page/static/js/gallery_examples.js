/**
 * Prompts and settings, each run greedily on the model that it names, and chosen since its two answers visibly
 * differ there. `words`: a learned prefix; the server then runs with --instructions.
 */
export const EXAMPLES = [
  {
    prompt: "Describe a rainy day in the city.",
    note: "The rain is full of joy and laughter.",
    weights: { positive: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Describe a rainy day in the city.",
    note: "The same slider the other way.",
    weights: { positive: -1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "What is inflation?",
    note: "From a textbook to words for a child.",
    weights: { simple: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Could people live on the moon?",
    note: "A word or two instead of paragraphs.",
    weights: { brief: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Tell me about cats.",
    note: "An encyclopedia falls in love.",
    weights: { positive: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Give me an idea for a birthday party.",
    note: "Two sliders at once.",
    weights: { friendly: 1, positive: 0.5 },
    beta: 1,
    models: ["smollm2"],
  },
];
