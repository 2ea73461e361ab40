"""Run in llama.cpp's environment: worker.py MODEL.gguf QUESTIONS.json ANSWERS.npz.

Questions: "texts", to be cut into tokens, and "tokens", whose logits are asked for; without those,
the file may hold a vocabulary alone.
"""

import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    file, questions, answers = sys.argv[1:]
    with open(questions) as source:
        asked = json.load(source)
    options = {"n_ctx": 128, "logits_all": True, "verbose": False, "n_threads": 1}
    model = llama_cpp.Llama(file, **options, vocab_only="tokens" not in asked)
    cut = [model.tokenize(t.encode(), add_bos=True, special=True) for t in asked["texts"]]
    found = {"cut": np.array(json.dumps(cut))}
    if "tokens" in asked:
        model.eval(asked["tokens"])
        found["logits"] = np.array(model.scores[: len(asked["tokens"])])
        # a cache of windows is not emptied by reset()
        again = llama_cpp.Llama(file, **options)
        written = zip(again.generate(cut[0], temp=0), range(4), strict=False)
        found["written"] = [token for token, _ in written]
    np.savez(answers, **found)


if __name__ == "__main__":
    main()
