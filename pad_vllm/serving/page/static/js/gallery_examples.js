/**
 * Prompts and settings, each run greedily on the model that it names, and chosen since its two answers visibly
 * differ there. `words`: a learned prefix's name or a sentence, where the server runs with --instructions.
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
    prompt: "What should I know before I get a dog?",
    note: "Advice with a lot of love for the dog.",
    weights: { positive: 1 },
    models: ["smollm2"],
  },
  {
    prompt: "Is it hard to learn to play the guitar?",
    note: "Two sliders at once.",
    weights: { brief: 1, friendly: 0.5 },
    models: ["smollm2"],
  },
  {
    prompt: "Why is the sky blue?",
    note: "A sentence that nobody trained.",
    words: "Answer as if talking to a five-year-old child.",
    models: ["qwen2.5-coder-0.5b"],
  },
  {
    prompt: "Why do cats purr?",
    note: "A learned prefix, by its name.",
    words: "funny",
    models: ["qwen2.5-coder-0.5b"],
  },
  {
    prompt: "Write a message to my boss: I am late today.",
    note: "Two short sentences instead of a letter.",
    words: "brief",
    models: ["qwen2.5-coder-0.5b"],
  },
  {
    prompt: "Write a message to my boss: I am late today.",
    note: "From feeling overwhelmed to best regards.",
    weights: { formal: 1 },
    models: ["qwen2.5-coder-0.5b"],
  },
];
