# /// script
# requires-python = ">=3.11"
# dependencies = ["trl>=1.16", "torch", "transformers>=5.2", "accelerate", "userlm"]
# ///
"""A step of TRL's GRPOTrainer with episodes as its environments, as in docs/rl.md.

The model is a tiny one that first learns one call of the tool by heart.
"""

import json
from importlib.metadata import version

import peer
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from userlm import Episode, Task, assets
from userlm.assistants import Script
from userlm.bridges.trl import SimulatedUser

CALL = '<tool_call>\n{"name": "say", "arguments": {"text": "Which flight?"}}\n</tool_call><|im_end|>'
PROMPT = [{"role": "user", "content": ""}]


def tokenizer():
    tokens = AutoTokenizer.from_pretrained(assets.model("assistant-tiny"))
    tokens.chat_template = qwen3_chat_template
    tokens.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    tokens.add_tokens(["<|im_start|>", "<tool_call>", "</tool_call>"])
    return tokens


def model_that_calls(tokens) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokens), num_attention_heads=4, **sizes)
    model = LlamaForCausalLM(config)
    prompt = [{"role": "user", "content": peer.LINES[0]}]
    start = tokens.apply_chat_template(
        prompt, tools=[SimulatedUser.say], add_generation_prompt=True, tokenize=False
    )
    ids = tokens(start + CALL, return_tensors="pt").input_ids
    labels = ids.clone()
    labels[:, : len(tokens(start).input_ids)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def questions(talk) -> float:
    """The reward: how many answers ask something."""
    return float(sum(turn.text.endswith("?") for turn in talk.turns[1::2]))


def train(tokens) -> dict:
    """Return the batch of one step of training."""
    user = Script(peer.LINES)
    task = Task("flight", peer.INTENT)
    batches = []

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batches.append(super()._generate_and_score_completions(inputs))
            return batches[-1]

    trainer = Trainer(
        model=model_that_calls(tokens),
        processing_class=tokens,
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "task": "flight"}] * 2),
        environment_factory=lambda: SimulatedUser(
            lambda name: Episode(user, task, reward=questions)
        ),
        args=GRPOConfig(
            "out",
            per_device_train_batch_size=2,
            num_generations=2,
            max_steps=1,
            max_completion_length=200,
            temperature=0.1,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    rewards = [environment.get_reward() for environment in trainer.environments]
    return {**batches[0], "rewards": rewards}


def main() -> None:
    tokens = tokenizer()
    batch = train(tokens)
    for i, ids in enumerate(batch["completion_ids"]):
        is_real = batch["completion_mask"][i].bool()
        is_trained = is_real & batch["tool_mask"][i].bool()
        trained = tokens.decode(ids[is_trained])
        others = tokens.decode(ids[is_real & ~is_trained])
        assert CALL in trained, trained
        assert peer.LINES[1] in others and peer.LINES[1] not in trained, (
            trained,
            others,
        )
        assert peer.LINES[0] in tokens.decode(batch["prompt_ids"][i])
        assert batch["rewards"][i] >= 1, batch["rewards"]


main()
how = "environment_factory"
note = "a step of GRPO: the user's words are masked in the loss"
print(
    json.dumps(
        {
            "harness": "TRL",
            "version": version("trl"),
            "how": how,
            "ok": True,
            "note": note,
        }
    )
)
