"""Small local tasks of lm-evaluation-harness, one of each kind, over texts that are longer than a row, empty, or odd."""

import json

CONTEXTS = [
    "The bread is baked in",
    "Question: who sails the ship?\nAnswer:",
    "a",
    "",
    "A recipe for bread: flour, water and salt. " * 4 + "Then",
    "the <s>struck</s> word, and \u2581 too  ",
    "\u4f60\u597d, 1998:",
    "Rule 7. The court, having heard both sides of the case and read the letter, holds that the",
]
WORDS = ["oven", " the captain", " rain", "water</s>", " a long answer of many words", " 12", " b", "\n"]
COMMON = """dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
  cache_dir: {cache}
test_split: test
fewshot_split: test
"""
GROUP = """group: mads_group
task: [mads_choice, mads_last_word]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""
TASKS = {
    "choice": """output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "last_word": """output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{word}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
  - metric: acc
""",
    "whole_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context}}{{word}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
    "writes": """output_type: generate_until
doc_to_text: "{{context}}{{word}}"
doc_to_target: "{{gold_text}}"
generation_kwargs:
  until: ["\\n\\n", "a"]
  max_gen_toks: 12
  do_sample: false
  temperature: 0.0
metric_list:
  - metric: exact_match
""",
}


def write_tasks(folder):
    """The folder for --include-path; returns the names of the tasks, without that of the group."""
    (folder / "tasks").mkdir(parents=True)
    rows = []
    for i, context in enumerate(CONTEXTS):
        rows.append({"context": context, "word": WORDS[i], "choices": WORDS[i:] + WORDS[:2], "gold": i % 2, "gold_text": "x"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = COMMON.format(file=folder / "rows.jsonl", cache=folder / "cache")
    for name, text in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(f"task: mads_{name}\n{common}{text}")
    (folder / "tasks" / "group.yaml").write_text(GROUP)
    return [f"mads_{name}" for name in TASKS]
