"""A toy on a CPU: by GRPO, a tiny assistant learns to ask its user a question. Both talk nonsense.

python recipes/rl/grpo.py [SEED] [STEPS] [GROUP]
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import userlm
from userlm import assets
from userlm.tasks import read_tasks
from userlm.types import Matches, RulesCheck

SEED = int(sys.argv[1]) if sys.argv[1:] else 0
STEPS = int(sys.argv[2]) if sys.argv[2:] else 10
ASKS = RulesCheck((Matches(r"\?$"),))  # right is an answer that ends with a question
TASKS = [replace(each, check=ASKS) for each in read_tasks(assets.sample_tasks())[:4]]
GROUP = int(sys.argv[3]) if sys.argv[3:] else 8  # episodes whose rewards are compared
CHAT = {"add_generation_prompt": True, "padding": True, "return_tensors": "pt"}

user = userlm.user("trained:userlm-tiny", seed=SEED)
folder = assets.model("assistant-tiny")
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
torch.manual_seed(SEED)


def play(seed):
    """Return a row of rewards a task; and for each turn who took it, prompts, and all ids."""
    episodes = [userlm.Episode(user, task, 2) for task in TASKS for _ in range(GROUP)]
    rewards, turns = torch.zeros(len(episodes)), []
    with ThreadPoolExecutor(GROUP) as threads:  # the user replies to several at once
        list(threads.map(lambda one: one.reset(seed), episodes))
        while on := [i for i, one in enumerate(episodes) if not one.done]:
            chats = [episodes[i].messages for i in on]
            prompts = tokenizer.apply_chat_template(chats, **CHAT)
            ids = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=24)
            said = ids[:, prompts["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(said, skip_special_tokens=True)
            steps = threads.map(lambda i, text: episodes[i].step(text), on, texts)
            rewards[on] = torch.tensor([reward for _, _, reward in steps])
            turns.append((on, prompts["attention_mask"], ids))
    return rewards.view(-1, GROUP), turns


for step in range(STEPS):
    rewards, turns = play(step)
    print(
        f"a toy, seed {SEED}, step {step}: mean reward {rewards.mean():.2f}", flush=True
    )
    advantages = (rewards - rewards.mean(1, keepdim=True)).view(-1, 1)
    for on, mask, ids in turns:  # one update a batch, so there is nothing to clip
        said = ids[:, mask.shape[1] :]
        is_said = said != tokenizer.pad_token_id  # the user's words are not trained
        logits = model(ids, attention_mask=torch.cat([mask, is_said], 1)).logits
        losses = cross_entropy(
            logits[:, -len(said[0]) - 1 : -1].mT, said, reduction="none"
        )
        (advantages[on] * losses * is_said).sum().div(is_said.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()
print(
    f"a toy, seed {SEED}, after {STEPS} steps: mean reward {play(STEPS)[0].mean():.2f}"
)
