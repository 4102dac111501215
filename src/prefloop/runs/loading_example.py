"""How to load a trained model with transformers alone: Python that lays a prompt out as it was laid out in training."""

import json
from pathlib import Path

from prefloop.data.chat_format import PLAIN_NAMES
from prefloop.models.encoder_rewards import is_encoder
from prefloop.runs.stage_context import FORMAT_FILE

QUESTION = "How do I make tea?"
ANSWER = "Boil the water first."

# Of its own accord `generate` would leave out all but the fifty likeliest tokens.
ANSWER_LINES = (
    "prompt = torch.tensor([ids])",
    'sampling = {"do_sample": True, "top_k": 0, "max_new_tokens": 64}',
    "answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), **sampling)",
    "print(tokenizer.decode(answer[0, len(ids) :], skip_special_tokens=True))",
)


def loading_example(folder: Path, *, is_reward_model: bool) -> str:
    """Markdown with the code for the model in `folder`. `path/to/final` stands for where the reader has it."""
    prompt_format = json.loads((folder / FORMAT_FILE).read_text(encoding="utf-8"))["prompt_format"]
    reads_both_ways = is_encoder(str(folder))
    model_class = "AutoModelForSequenceClassification" if is_reward_model else "AutoModelForCausalLM"
    lines = [
        "import torch",
        f"from transformers import {model_class}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("path/to/final")',
        f'model = {model_class}.from_pretrained("path/to/final").eval()',
        "",
        f"question = {json.dumps(QUESTION)}",
    ]
    if reads_both_ways:
        lines += _encoder_lines(prompt_format)
    else:
        lines += [*_prompt_lines(prompt_format), *(_score_lines(prompt_format) if is_reward_model else ANSWER_LINES)]
    note = _note(prompt_format, folder) if not reads_both_ways else ""
    return "```python\n" + "\n".join(lines) + "\n```" + note


def _prompt_lines(prompt_format: str) -> list[str]:
    """`ids`: the prompt in tokens, up to where the answer begins."""
    if prompt_format == "chat":
        return [
            'messages = [{"role": "user", "content": question}]',
            "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
            "ids = tokenizer(text, add_special_tokens=False).input_ids",
        ]
    text = "question"
    if prompt_format == "plain":
        text = f'f"{PLAIN_NAMES["user"]}: {{question}}\\n\\n{PLAIN_NAMES["assistant"]}:"'
    return [
        "start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id",
        f"ids = [start, *tokenizer({text}, add_special_tokens=False).input_ids]",
    ]


def _score_lines(prompt_format: str) -> list[str]:
    answer = f'"{" " if prompt_format == "plain" else ""}{ANSWER}"'
    return [
        f"ids += tokenizer({answer}, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]",
        "with torch.no_grad():",
        "    print(model(torch.tensor([ids])).logits[0, 0].item())",
    ]


def _encoder_lines(prompt_format: str) -> list[str]:
    text = f'f"{PLAIN_NAMES["user"]}: {{question}}"' if prompt_format == "plain" else "question"
    return [
        f'inputs = tokenizer({text}, "{ANSWER}", return_tensors="pt")',
        "with torch.no_grad():",
        "    print(model(**inputs).logits[0, 0].item())",
    ]


def _note(prompt_format: str, folder: Path) -> str:
    """What else the automatic format does."""
    if prompt_format != "auto":
        return ""
    has_template = (folder / "chat_template.jinja").exists()
    how = "with the chat template" if has_template else "as turns of `Human:` and `Assistant:`"
    return f"\n\nA prompt that is a text is laid out like this; a prompt that is a list of messages is laid out {how}."
