"""The embedded models: plain transformers loads them, and they behave as their cards say.

The people here are those of the sample logs, written for this project: no model learned from them.
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
import processes
import pytest

from userlm import assets, commands, loading
from userlm.flip import prompt, samples
from userlm.metrics import intrinsic
from userlm.models.local import LocalModel
from userlm.rows import read_conversations, write_conversations
from userlm.simulate import respond_all
from userlm.text import INTENT_PREFIX, content_words
from userlm.types import Conversation, InputError, Sampling

LARGEST = 16 * 2**20  # bytes

PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder, messages in json.loads(sys.argv[1]).items():
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    shape = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tokenizer.apply_chat_template(messages, **shape)
    drawn = model.float().generate(**ids, do_sample=False, max_new_tokens=40)
    print(json.dumps(drawn[0].tolist()))
assert "userlm" not in sys.modules
"""


@pytest.fixture(scope="module")
def user() -> LocalModel:
    return LocalModel.load(str(assets.model("userlm-tiny")), "cpu")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """The people of the sample logs, with the intents that were written for them."""
    place = tmp_path_factory.mktemp("people")
    commands.import_(commands.Import([str(assets.sample_logs())], out=place / "import"))
    commands.clean(
        commands.Clean(place / "import", out=place / "clean", template_limit=5)
    )
    return [
        person
        for split in ("train", "valid", "test")
        for person in read_conversations(place / "clean" / f"{split}.jsonl")
    ]


@pytest.mark.parametrize("name", assets.TINY)
def test_a_model_is_small_and_holds_no_code_of_its_own(name):
    folder = assets.model(name)
    assert {path.suffix for path in folder.iterdir()} == {
        ".jinja",
        ".json",
        ".md",
        ".safetensors",
    }
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config["vocab_size"]) == (
        "llama",
        "bfloat16",
        8192,
    )
    card = (folder / "README.md").read_text()
    assert (
        "For demos and tests" in card
        and "Apache-2.0" in card
        and "Talk with AI assistants is" in card
    )


MESSAGES = {
    "userlm-tiny": [
        {"role": "system", "content": INTENT_PREFIX + "book a table in a restaurant."}
    ],
    "assistant-tiny": [{"role": "user", "content": "How do I boil an egg?"}],
}


@pytest.fixture(scope="module")
def plain() -> dict[str, list[int]]:
    """What plain transformers says to these."""
    asked = json.dumps(
        {str(assets.model(name)): messages for name, messages in MESSAGES.items()}
    )
    command = [sys.executable, "-c", PLAIN, asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(MESSAGES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MESSAGES)
def test_plain_transformers_says_what_we_say(name, plain):
    """Greedily, from the chat template and the generation settings that lie in the folder."""
    messages, theirs = MESSAGES[name], plain[name]
    local = LocalModel.load(str(assets.model(name)), "cpu")
    if name == "assistant-tiny":
        reply = local.chat(messages, Sampling(temperature=0, max_tokens=40))
        ours = local.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    else:
        template = local.template()
        asked = prompt(Conversation(intent=messages[0]["content"]), template)
        # The chat template ends before the newline that begins a turn, so the model says it first.
        ours = list(asked[: -len(template.encode("\n"))])
        reply = local.complete(
            asked, Sampling(temperature=0, max_tokens=39, stop_ids=template.stop_ids)
        )
    assert theirs[: len(ours)] == ours
    said = local.tokenizer.decode(theirs[len(ours) :], skip_special_tokens=True)
    assert said.strip() == reply.text.strip() != ""


def test_only_the_user_model_is_taken_for_one(user):
    assert user.check_user(user.template()) is None  # no warning
    with pytest.raises(
        InputError, match=r"assistant-tiny: .* so it is not a user model"
    ):
        loading.user("trained:assistant-tiny")


@pytest.mark.slow
def test_it_predicts_people_better_when_it_knows_what_they_want(people, tmp_path):
    write_conversations(tmp_path / "people.jsonl", people[::2])
    found = commands.ppl(
        commands.Ppl(
            tmp_path / "people.jsonl", model="userlm-tiny", out=tmp_path / "ppl"
        )
    )

    def ratio(column):
        return next(one for one in found[column] if one["name"] == "perplexity ratio")

    assert ratio("with / without")["high"] < 1
    assert ratio("with / another's")["high"] < 1


@pytest.mark.slow
def test_it_leaves_where_people_leave(people):
    asked = [person for person in people if person.ended][:40]
    prefixes = [sample.prefix for person in asked for sample in samples(person)]
    answers = list(respond_all(loading.user("trained:userlm-tiny"), prefixes))
    found = intrinsic.termination_auroc(answers)

    assert found.low > 0.5  # that of who looks at nothing


@pytest.mark.slow
def test_first_turns_are_short_and_on_the_subject_about_as_often_as_those_of_people(
    people,
):
    """The intents avoid the words of the person; where a first turn shares one, it is on the
    subject."""
    asked = people[:60]
    talks = [Conversation(person.id, intent=person.intent) for person in asked]
    speaker = loading.user("trained:userlm-tiny", seed=1, temperature=0.6)
    with ThreadPoolExecutor(8) as pool:
        firsts = [reply.text for reply in pool.map(speaker.reply, talks)]

    def on_subject(texts, talks):
        pairs = zip(texts, talks, strict=True)
        return sum(bool(set(content_words(text)) & goal(talk)) for text, talk in pairs)

    def goal(talk):
        return set(content_words(talk.intent.removeprefix(INTENT_PREFIX)))

    human = on_subject([person.user_turns[0] for person in asked], talks)
    others = on_subject(firsts, [*talks[7:], *talks[:7]])
    assert human > 15 and others < 8  # what is compared is no accident
    assert on_subject(firsts, talks) > 0.8 * human
    lengths = sorted(len(first.split()) for first in firsts)
    assert 2 <= lengths[30] <= 20


@pytest.mark.slow
def test_chat_without_arguments_is_with_the_embedded_user():
    process = processes.userlm("chat")
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert "plan a trip to Rome" in told and "user>" in told


@pytest.mark.slow
def test_a_person_can_talk_to_the_embedded_assistant():
    process = processes.userlm("chat", "--role", "user")
    _, told = process.communicate("How are you?\n")
    assert process.returncode == 0, told
    assert "assistant>" in told


@pytest.mark.slow
def test_serve_without_arguments_serves_the_tiny_user_where_the_small_one_is_not_here():
    """By a client that nobody here wrote: the user opens, and is likelier to leave when all is
    said."""
    run = processes.userlm("serve", "--port", "0")
    try:
        told = ""
        while "Ctrl-C" not in told:
            told += run.stderr.readline()
        assert "userlm-tiny steps in" in told
        url = re.search(r'base_url="(http://127\.0\.0\.1:\d+/v1)"', told)[1]
        client = openai.OpenAI(base_url=url, api_key="none")
        [model] = client.models.list()
        assert model.id == "userlm-tiny"
        intent = {
            "role": "system",
            "content": INTENT_PREFIX + "book a table in a restaurant.",
        }
        said = [
            ("user", "i need a table for two tonight"),
            ("assistant", "Which restaurant would you like?"),
        ]
        over = [
            *said,
            ("user", "any italian one"),
            ("assistant", "I booked it. Is there anything else?"),
        ]
        over += [("user", "no thanks, bye"), ("assistant", "You are welcome. Goodbye!")]

        def p_end(pairs):
            messages = [
                intent,
                *({"role": role, "content": text} for role, text in pairs),
            ]
            answer = client.chat.completions.create(
                model=model.id, messages=messages, seed=1
            )
            return answer.model_extra["userlm"]["p_end"]

        assert p_end(over) > 0.5 > 0.1 > p_end(said)
    finally:
        run.kill()
        run.communicate()
