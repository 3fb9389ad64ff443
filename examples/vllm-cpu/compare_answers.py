#!/usr/bin/env python3
"""Asks one server and a pair (its proxy) the same prompts at temperature 0 and counts equal answers: what was moved was
the right KV cache. Usage: compare_answers.py http://HOST:PORT http://HOST:PORT [MODEL=tiny]"""

import concurrent.futures
import json
import pathlib
import random
import re
import sys
import urllib.request

one, pair = sys.argv[1:3]
model = sys.argv[3] if len(sys.argv) > 3 else "tiny"
source = pathlib.Path(__file__).resolve().parents[2] / "src/measure/words.rs"
words = re.findall(r'"([a-z]+)"', source.read_text())


def ask(url, prompt):
    body = {"model": model, "prompt": prompt, "max_tokens": 32, "ignore_eos": True, "temperature": 0.0}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


rng = random.Random()
different = 0
for tokens in 400, 1200:
    for streams in 1, 4:
        prompts = [" ".join(rng.choices(words, k=tokens)) for _ in range(20)]
        wanted = [ask(one, prompt) for prompt in prompts]
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            got = list(pool.map(lambda prompt: ask(pair, prompt), prompts))
        same = sum(a == b for a, b in zip(wanted, got))
        different += len(prompts) - same
        print(f"{tokens} tokens, {streams} at a time: {same} of {len(prompts)} the same, {len(set(wanted))} distinct")
sys.exit(different > 0)
