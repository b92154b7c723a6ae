"""The engine: what it samples for many at once is what transformers samples for each alone."""

import math
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from userlm.models import attention, kv_cache, sampling
from userlm.models import engine as engine_module
from userlm.models.attention import check_document_masking
from userlm.models.engine import Engine, Request
from userlm.models.kv_cache import KVCache, default_budget, shared_prefix
from userlm.models.sampling import sample_tokens
from userlm.types import TOO_LONG, ModelError, Sampling

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
CONTEXT_LENGTH = 256
GREEDY = Sampling(temperature=0, max_tokens=16)


def llama(**others):
    torch.manual_seed(0)
    config = LlamaConfig(
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,
        **SIZES,
        **HEADS,
        **others,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    """Weights large enough that its tokens are not nearly equally probable."""
    return llama()


def engine_of(model, batch=8, budget=None):
    return Engine(model, "tiny", CONTEXT_LENGTH, batch, budget)


def prompts(count, seed=0, longest=60):
    numbers = random.Random(seed)
    return [
        [numbers.randrange(3, 128) for _ in range(numbers.randrange(1, longest))]
        for _ in range(count)
    ]


def together(engine, prompts, samplings):
    """All prompts at once, a thread each."""
    gate = threading.Barrier(len(prompts))

    def one(ids, sampling):
        gate.wait()
        return engine.complete(ids, sampling)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, prompts, samplings))


def generate(model, ids, length=16, **options):
    """What transformers generates, greedily, with nothing of its generation_config."""
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        **{
            "do_sample": False,
            "max_new_tokens": length,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        | options,
    )
    return tuple(out[0, len(ids) :].tolist())


def talk(engine, opening, answers):
    """A conversation: after the opening, sampled turns and the given answers alternate."""
    ids, said = list(opening), []
    for answer in answers:
        turn = engine.complete(ids, GREEDY).ids
        said.append(turn)
        ids += [*turn, *answer]
    return said


def talk_alone(model, opening, answers):
    ids, said = list(opening), []
    for answer in answers:
        turn = generate(model, ids)
        said.append(turn)
        ids += [*turn, *answer]
    return said


# --- many at once ---------------------------------------------------------------------------------


def test_many_prompts_at_once_get_what_each_gets_from_transformers_alone(model):
    asked = prompts(12)
    lengths = [1 + 2 * i for i in range(12)]
    samplings = [Sampling(temperature=0, max_tokens=length) for length in lengths]
    alone = [
        generate(model, ids, length) for ids, length in zip(asked, lengths, strict=True)
    ]
    for batch in (1, 3, 16):
        assert [
            found.ids for found in together(engine_of(model, batch), asked, samplings)
        ] == alone


def test_the_attention_of_a_gpu_gets_the_new_token_of_all_rows_at_once(
    model, monkeypatch
):
    """No GPU here: a stub of its kernel computes the definition. Shapes as in
    torch.nn.attention.varlen: (tokens, heads, size)."""
    rows_at_once = []

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale):
        assert query.shape[1] == key.shape[1] == value.shape[1]
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
        assert cu_seq_k[-1] == len(key) and cu_seq_q[-1] == len(query)
        rows_at_once.append(len(cu_seq_q) - 1)
        out = torch.empty_like(query)
        places = zip(pairwise(cu_seq_q), pairwise(cu_seq_k), strict=True)
        for (a, b), (c, d) in places:
            weights = torch.einsum("qhd,khd->hqk", query[a:b], key[c:d]) * scale
            out[a:b] = torch.einsum("hqk,khd->qhd", weights.softmax(-1), value[c:d])
        return out

    monkeypatch.setattr(attention, "_varlen", kernel)
    monkeypatch.setattr(attention, "_has_varlen", lambda states: True)
    asked = prompts(12)
    samplings = [Sampling(temperature=0, max_tokens=9)] * 12
    alone = [generate(model, ids, 9) for ids in asked]
    engine = engine_of(model, 16)
    assert [found.ids for found in together(engine, asked, samplings)] == alone
    assert engine.mode == "kv_cache"
    assert max(rows_at_once) == 12


def test_conversations_continue_from_their_rows_and_from_none_if_those_were_dropped(
    model,
):
    """5 conversations of 3 turns. A row of 100 tokens has 100 x 2 layers x 2 x 2 groups x 8 x 4
    bytes = 25.6 kB: two fit into 60 kB, and five are needed."""
    openings, answers = (
        prompts(5, seed=1),
        [prompts(3, seed=2 + i, longest=20) for i in range(5)],
    )
    alone = [
        talk_alone(model, opening, heard)
        for opening, heard in zip(openings, answers, strict=True)
    ]
    engine = engine_of(model, 4)
    with ThreadPoolExecutor(5) as pool:
        assert (
            list(pool.map(lambda i: talk(engine, openings[i], answers[i]), range(5)))
            == alone
        )
    engine = engine_of(model, 4, budget=60_000)
    engine.complete([5], replace(GREEDY, max_tokens=1))
    held = []
    take = engine._cache.acquire

    def watch(ids, tokens):
        row = take(ids, tokens)
        held.append(
            (
                engine._cache.size(engine._cache.rows),
                sum(row.busy for row in engine._cache.rows),
            )
        )
        return row

    engine._cache.acquire = watch
    with ThreadPoolExecutor(5) as pool:
        assert (
            list(pool.map(lambda i: talk(engine, openings[i], answers[i]), range(5)))
            == alone
        )
    assert all(size <= 60_000 or busy <= 1 for size, busy in held)
    assert max(busy for _, busy in held) > 1


def test_a_turn_processes_only_its_new_tokens(model):
    engine = engine_of(model)
    ids = list(range(10, 40))
    first = engine.complete(ids, GREEDY).ids
    # The last token that is sampled is not processed.
    assert engine.tokens_processed == 30 + 15
    engine.complete([*ids, *first, 7, 8, 9], GREEDY)
    assert engine.tokens_processed == 45 + 1 + 3 + 15


def test_another_sample_of_the_same_prompt_processes_nothing_of_it(model):
    engine = engine_of(model)
    ids = list(range(10, 40))
    sampling = Sampling(seed=1, max_tokens=10)
    one = engine.complete(ids, sampling)
    before = engine.tokens_processed
    other = engine.complete(ids, replace(sampling, seed=2))
    assert engine.tokens_processed == before + 9 and other.ids != one.ids
    assert engine.complete(ids, sampling) == one
    assert len(engine._cache.rows) == 1


def test_many_samples_of_one_prompt_at_once_process_it_once(model):
    engine = engine_of(model, 8)
    ids = list(range(10, 60))
    samplings = [Sampling(seed=seed, max_tokens=10) for seed in range(8)]
    sampled = together(engine, [ids] * 8, samplings)
    assert engine.tokens_processed == 50 + 8 * 9
    assert [found.ids for found in sampled] == [
        engine_of(model, 1).complete(ids, s).ids for s in samplings
    ]


def test_conversations_with_a_shared_prefix_do_not_take_each_others_rows(model):
    """Two of 40 tokens, the first 20 the same. The second copies those; the first goes on from all
    of its own."""
    engine = engine_of(model)
    same, one, two = list(range(10, 30)), list(range(30, 50)), list(range(50, 70))
    first = engine.complete([*same, *one], GREEDY).ids
    assert engine.tokens_processed == 40 + 15
    engine.complete([*same, *two], GREEDY)
    assert engine.tokens_processed == 55 + 20 + 15
    again = engine.complete([*same, *one, *first, 7], GREEDY).ids
    assert engine.tokens_processed == 90 + 2 + 15
    assert again == generate(model, [*same, *one, *first, 7])


def test_with_one_at_once_nothing_depends_on_what_was_asked_before(model):
    """To the bit: the logits of a prompt that was processed in one pass and in two differ in their
    last bits. So a prompt that only shares a prefix is processed anew, and two samples are
    equal."""
    ids = list(range(10, 60))
    sampling = Sampling(seed=3, max_tokens=20, end_id=4)
    fresh = engine_of(model, 1)
    expected = fresh.complete(ids, sampling)
    used = engine_of(model, 1)
    used.complete(ids[:30], sampling)
    used.complete([*ids, *expected.ids, 7], sampling)
    before = used.tokens_processed
    assert used.complete(ids, sampling) == expected
    assert used.tokens_processed == before + 50 + 19
    assert used.complete(ids, sampling) == expected
    assert used.tokens_processed == before + 50 + 19 + 19
    [row, other] = (
        next(row for row in e._cache.rows if row.prompt_length == 50)
        for e in (fresh, used)
    )
    assert torch.equal(row.logits, other.logits)
    together(used, prompts(4), [sampling] * 4)
    assert used.complete(ids, sampling) == expected


def test_a_long_prompt_is_prefilled_in_parts_and_others_are_done_meanwhile(
    model, monkeypatch
):
    monkeypatch.setattr(engine_module, "CHUNK", 16)
    engine = engine_of(model, 4)
    engine.complete([5], GREEDY)
    long, short = [10 + i % 100 for i in range(200)], [5, 6, 7]
    done = []

    def ask(name, ids, length):
        found = engine.complete(ids, replace(GREEDY, max_tokens=length))
        done.append(name)
        return found.ids

    with (
        ThreadPoolExecutor(2) as pool,
        engine.lock,
    ):
        # so that both are there before the first step
        first, second = (
            pool.submit(ask, "long", long, 5),
            pool.submit(ask, "short", short, 5),
        )
        while len(engine._active) + len(engine._waiting) < 2:
            time.sleep(0.001)
    assert done == ["short", "long"]
    assert (first.result(), second.result()) == (
        generate(model, long, 5),
        generate(model, short, 5),
    )


def test_the_oldest_prompt_gets_half_of_a_chunk_and_then_come_the_shortest(model):
    """2,048 tokens: 1,024 of the first; of the other 1,024 all 100 of the shortest, 924 of the
    next, none of the last. A token that was sampled does not count, and a prompt that is known has
    nothing to process."""
    engine = engine_of(model)
    engine.complete([5], GREEDY)
    for pending in (3000, 2500, 1, 2000, 100, 0):
        ids = [7] * (10 + pending)
        request = Request(ids, 9, 10_000, GREEDY, random.Random(0))
        request.row.ids = [7] * 10
        engine._active.append(request)
    long, last, sampled, next_, short, known = engine._active
    parts = {request: len(new) for request, new in engine._step_inputs().items()}
    engine._active.clear()
    assert parts == {long: 1024, next_: 924, short: 100, sampled: 1}
    assert last not in parts and known not in parts


def test_a_completion_ends_at_the_context_length(model):
    ids = [10 + i % 100 for i in range(CONTEXT_LENGTH - 4)]
    found = engine_of(model).complete(ids, GREEDY)
    assert found.ids == generate(model, ids, 4) and found.stop_id is None
    with pytest.raises(
        ModelError, match="256 tokens do not fit its context length of 256"
    ) as caught:
        engine_of(model).complete([5] * CONTEXT_LENGTH, GREEDY)
    assert caught.value.reason == TOO_LONG


def test_the_rows_take_no_more_of_the_host_than_is_enough(model):
    cpu = torch.device("cpu")
    assert default_budget(cpu, 2**50) > 2**26
    assert default_budget(cpu, 100) == 100
    engine = engine_of(model, batch=4)
    engine.complete([5, 6], GREEDY)
    cache = engine._cache
    enough = 4 * engine_module.TOKENS_PER_REQUEST * cache.token_bytes
    assert 0 < cache.budget <= enough


def test_rows_are_dropped_when_asked_but_not_under_a_request(model):
    engine = engine_of(model)
    engine.complete([5, 6], GREEDY)
    assert len(engine._cache.rows) == 1
    engine._active.append(None)
    engine.drop_rows()
    assert len(engine._cache.rows) == 1
    engine._active.clear()
    engine.drop_rows()
    assert not engine._cache.rows
    assert engine.complete([5, 6], GREEDY) == engine_of(model).complete([5, 6], GREEDY)


# --- rows -----------------------------------------------------------------------------------------


def rows(budget=1000, max_rows=10, exact=False):
    """One byte a token, and none for a row."""
    return KVCache(budget, 1, 0, max_rows, 100, exact)


def fill(rows, ids, sampled=(), length=None):
    """A row as it is when its request is done."""
    row = rows.acquire(list(ids), length or len(ids) + len(sampled))
    row.ids[:] = [*ids, *sampled]
    row.logits = torch.zeros(1)
    rows.release(row)
    return row


def test_a_shared_prefix_is_counted_if_it_is_longer_than_the_known_one():
    assert shared_prefix([1, 2, 3, 4], [1, 2, 3, 9]) == 3
    assert shared_prefix([1, 2, 3, 4], [1, 2, 3, 9], least=2) == 3
    assert shared_prefix([1, 2, 3, 4], [1, 2, 3, 9], least=3) == 0
    assert shared_prefix([1, 2], [1, 2, 3]) == 2 and shared_prefix([], [1]) == 0


def test_a_row_is_reused_by_the_next_turn_and_by_the_same_turn_again():
    held = rows()
    row = fill(held, [1, 2, 3], [4, 5])
    assert held.acquire([1, 2, 3, 4, 5, 6, 7], 10) is row and row.ids == [1, 2, 3, 4, 5]
    held.release(row)
    row = fill(held, [1, 2, 3, 4, 5, 6, 7], [8])
    assert held.acquire([1, 2, 3, 4, 5, 6, 7], 10) is row and row.ids == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    assert row.logits is not None


def test_a_prompt_that_is_known_without_its_logits_leaves_one_token_to_process():
    held = rows()
    fill(held, [1, 2, 3, 4, 5])
    row = held.acquire([1, 2, 3], 10)
    assert row.ids == [1, 2] and row.logits is None


def test_a_row_that_another_request_may_need_is_copied():
    held = rows()
    row = fill(held, [1, 2, 3, 4, 5, 6])
    other = held.acquire([1, 2, 3, 9], 10)
    assert other is not row and other.ids == [1, 2, 3] and row.ids == [1, 2, 3, 4, 5, 6]


def test_a_busy_row_is_not_reused():
    held = rows()
    row = fill(held, [1, 2, 3])
    assert held.acquire([1, 2, 3], 10) is row
    other = held.acquire([1, 2, 3], 10)
    assert other is not row and other.ids == [1, 2, 3] and other.logits is not None


def test_the_least_recently_used_row_is_dropped_first_and_a_busy_one_never():
    held = rows(budget=30)
    one, two, three = (fill(held, [i] * 10) for i in (1, 2, 3))
    held.acquire([1] * 10, 10)
    assert (
        held.acquire([4] * 10, 10)
        and two not in held.rows
        and {one, three} < {*held.rows}
    )
    assert held.acquire([5] * 10, 10) and three not in held.rows
    assert held.acquire([6] * 10, 10) is None and held.size(held.rows) == 30


def test_one_row_may_be_larger_than_the_budget_if_it_is_alone():
    held = rows(budget=5)
    row = held.acquire([1] * 10, 20)
    assert row.capacity == 20 and held.acquire([2], 3) is None
    held.release(row)
    assert held.acquire([2], 3) and row not in held.rows


def test_there_are_at_most_max_rows():
    held = rows(max_rows=3)
    for i in range(9):
        fill(held, [i, i])
    assert len(held.rows) == 3
    assert fill(held, [8, 8]) and len(held.rows) == 3


def test_a_row_grows_by_half_at_least_and_not_beyond_the_context_length():
    held = rows()
    row = fill(held, [1] * 40)
    held.release(held.acquire([1] * 41, 41))
    assert row.capacity == 60
    held.release(held.acquire([1] * 61, 61))
    assert row.capacity == 90
    held.release(held.acquire([1] * 95, 95))
    assert row.capacity == 100


def test_exact_rows_serve_their_own_prompt_only():
    held = rows(exact=True)
    row = fill(held, [1, 2, 3], [4])
    assert held.acquire([1, 2, 3, 4, 5], 10).ids == []
    assert held.acquire([1, 2], 10).ids == []
    assert held.acquire([1, 2, 3], 10) is row


# --- sampling -------------------------------------------------------------------------------------


def nucleus_by_hand(logits, temperature, top_p, number):
    """By the definition, one token after the other, in double precision."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    inside, held = [], 0.0
    for i in order:
        if held >= top_p * sum(weights):
            break
        inside.append(i)
        held += weights[i]
    if top_p == 1:
        inside.sort()  # nothing is left out, so nothing is sorted
    passed = 0.0
    for i in inside:
        passed += weights[i]
        if passed > number * held:
            return i
    return None


@pytest.mark.parametrize("top", [1, 4, 256])
def test_the_nucleus_is_the_same_however_many_candidates_are_looked_at_first(
    monkeypatch, top
):
    """300 rows of 50 logits, some of few values, so that many are equal, at 5 temperatures and
    shares."""
    monkeypatch.setattr(sampling, "TOP", top)
    numbers = random.Random(0)
    kinds = [(t, p) for t in (0.3, 1.0, 2.0) for p in (0.05, 0.5, 0.8, 0.97, 1.0)]
    logits = torch.randn(300, 50, generator=torch.Generator().manual_seed(0)) * 2
    logits[::2] = logits[::2].round()
    samplings = [Sampling(temperature=t, top_p=p) for t, p in kinds * 20]
    levels = [numbers.random() for _ in samplings]
    found = sample_tokens(logits, samplings, levels)
    expected = [
        nucleus_by_hand(row.double().tolist(), s.temperature, s.top_p, level)
        for row, s, level in zip(logits, samplings, levels, strict=True)
    ]
    # A level that falls within float32's rounding of a border may go either way.
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1


def test_among_equals_the_smaller_ids_are_the_nucleus_however_many_are_looked_at(
    monkeypatch,
):
    """Of 50 equal tokens, 3 hold more than 0.05."""
    for top in (1, 4, 64):
        monkeypatch.setattr(sampling, "TOP", top)
        assert sample_tokens(
            torch.zeros(3, 50), [Sampling(top_p=0.05)] * 3, [0.1, 0.5, 0.9]
        ) == [
            0,
            1,
            2,
        ]


def test_no_number_however_large_or_small_samples_a_token_without_probability():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 4)
    samplings = [Sampling(top_p=p) for p in (1.0, 1.0, 0.9, 0.9)]
    assert sample_tokens(logits, samplings, [0.0, 1 - 2**-53, 0.0, 1 - 2**-53]) == [
        1,
        2,
        1,
        2,
    ]


def test_temperature_0_takes_the_largest_and_so_does_a_tiny_one():
    logits = torch.tensor([[1.0, 3.0, 2.9]] * 2)
    assert sample_tokens(
        logits, [Sampling(temperature=0), Sampling(temperature=1e-40)], [0.99, 0.99]
    ) == [
        1,
        1,
    ]


def chi_square(ours, theirs):
    """Two samples of one size: the sum of (a - b)^2 / (a + b) over the tokens, and its degrees of
    freedom."""
    a, b = (
        torch.bincount(torch.tensor(found), minlength=128).double()
        for found in (ours, theirs)
    )
    seen = a + b > 0
    return float(((a - b)[seen] ** 2 / (a + b)[seen]).sum()), int(seen.sum()) - 1


def assert_alike(ours, theirs):
    """A chi-square of n degrees of freedom has mean n and variance 2 n; 5 deviations above is no
    chance."""
    value, freedom = chi_square(ours, theirs)
    assert freedom >= 3 and value < freedom + 5 * math.sqrt(2 * freedom)


COUNT = 1000
"""Samples."""
IDS = [17, 4, 99, 23, 8]


@pytest.mark.parametrize("ban", [False, True])
def test_samples_follow_the_distribution_of_generate_with_the_arguments_of_the_model_card(
    model, ban
):
    """T 1, top_p 0.8, no top_k, 3 tokens; each position by itself, and the first two together (a
    hash). With `ban`, none of the three most probable may come first: bad words, where there is one
    token to sample."""
    with torch.no_grad():
        first = (
            frozenset(model(torch.tensor([IDS])).logits[0, -1].topk(3).indices.tolist())
            if ban
            else frozenset()
        )
    length = 1 if ban else 3
    sampling = Sampling(
        temperature=1.0, top_p=0.8, max_tokens=length, banned_first=first
    )
    engine = engine_of(model, 32)
    with ThreadPoolExecutor(32) as pool:
        seeds = (replace(sampling, seed=seed) for seed in range(COUNT))
        ours = [
            found.ids
            for found in pool.map(lambda one: engine.complete(IDS, one), seeds)
        ]
    torch.manual_seed(0)
    theirs = model.generate(
        input_ids=torch.tensor([IDS]),
        attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
        do_sample=True,
        temperature=1.0,
        top_p=0.8,
        top_k=0,
        max_new_tokens=length,
        num_return_sequences=COUNT,
        eos_token_id=None,
        pad_token_id=0,
        bad_words_ids=[[token] for token in first] or None,
    )[:, len(IDS) :].tolist()
    for place in range(length):
        assert_alike([ids[place] for ids in ours], [ids[place] for ids in theirs])
    if not ban:
        assert_alike(
            [hash(ids[:2]) % 61 for ids in ours],
            [hash(tuple(ids[:2])) % 61 for ids in theirs],
        )
    assert not ban or not first & {ids[0] for ids in ours}


def test_a_wrong_distribution_is_found_by_the_same_test(model):
    """The same samples at top_p 0.9 instead of 0.8, so that the test above can fail."""
    engine = engine_of(model, 32)
    found = []
    for top_p in (0.8, 0.9):
        with ThreadPoolExecutor(32) as pool:
            seeds = (
                Sampling(top_p=top_p, max_tokens=1, seed=seed) for seed in range(COUNT)
            )
            found.append(
                [
                    one.ids[0]
                    for one in pool.map(lambda one: engine.complete(IDS, one), seeds)
                ]
            )
    value, freedom = chi_square(*found)
    assert value > freedom + 5 * math.sqrt(2 * freedom)


def test_other_requests_do_not_change_the_tokens_of_a_seed(model):
    samplings = [Sampling(seed=seed, max_tokens=12) for seed in range(8)]
    asked = prompts(8, seed=4)
    alone = [
        engine_of(model, 1).complete(ids, s).ids
        for ids, s in zip(asked, samplings, strict=True)
    ]
    assert [
        found.ids for found in together(engine_of(model, 8), asked, samplings)
    ] == alone


# --- bans and ends --------------------------------------------------------------------------------


def first_probabilities(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].softmax(-1)


def test_banned_tokens_are_never_sampled_and_those_banned_first_not_at_first(model):
    plain = generate(model, IDS)
    top = plain[0]
    engine = engine_of(model)
    first = engine.complete(IDS, replace(GREEDY, banned_first=frozenset((top,))))
    assert first.ids[0] != top
    assert first.ids[1:] == generate(model, [*IDS, first.ids[0]], 15)
    never = engine.complete(
        IDS, replace(GREEDY, banned_ids=frozenset(plain[:4]) | {10**6})
    )
    assert not {*plain[:4]} & {*never.ids}
    assert never.ids == generate(
        model, IDS, bad_words_ids=[[token] for token in {*plain[:4]}]
    )


def test_stop_ids_close_and_p_end_is_that_of_the_raw_logits(model):
    plain = generate(model, IDS)
    stop = next(i for i, token in enumerate(plain) if token not in plain[:i] and i > 2)
    sampling = replace(
        GREEDY,
        stop_ids=frozenset((plain[stop],)),
        end_id=plain[stop],
        banned_first=frozenset((plain[stop],)),
    )
    found = engine_of(model).complete(IDS, sampling)
    assert found.ids == plain[:stop] and found.stop_id == plain[stop]
    assert found.p_end == pytest.approx(
        float(first_probabilities(model, IDS)[plain[stop]]), rel=1e-5
    )


def test_with_an_end_threshold_the_end_depends_on_its_probability_alone(model):
    """The end is the most probable token, so greedy sampling ends; with a threshold above its
    probability it is not sampled at all."""
    probabilities = first_probabilities(model, IDS)
    end, p = int(probabilities.argmax()), float(probabilities.max())
    sampling = replace(GREEDY, stop_ids=frozenset((end,)), end_id=end)
    engine = engine_of(model)
    assert engine.complete(IDS, sampling).stop_id == end
    ends = engine.complete(IDS, replace(sampling, end_threshold=p * 0.99))
    assert (ends.ids, ends.stop_id) == ((), end) and ends.p_end == pytest.approx(
        p, rel=1e-5
    )
    stays = engine.complete(IDS, replace(sampling, end_threshold=p * 1.01))
    assert (
        stays.ids[0] == int(probabilities.topk(2).indices[1])
        and stays.p_end == ends.p_end
    )
    rare = int(probabilities.argmin())  # never sampled greedily, but it is above 0
    leaves = engine.complete(IDS, replace(GREEDY, end_id=rare, end_threshold=0.0))
    assert (leaves.ids, leaves.stop_id) == ((), rare)


def test_later_positions_ignore_the_end_threshold(model):
    plain = generate(model, IDS)
    stop = next(i for i, token in enumerate(plain) if token not in plain[:i] and i > 2)
    sampling = replace(
        GREEDY,
        stop_ids=frozenset((plain[stop],)),
        end_id=plain[stop],
        end_threshold=0.9999,
    )
    found = engine_of(model).complete(IDS, sampling)
    assert (found.ids, found.stop_id) == (plain[:stop], plain[stop])


# --- faults ---------------------------------------------------------------------------------------


def test_when_every_token_is_banned_the_caller_is_told(model):
    with pytest.raises(
        ModelError, match="tiny: no token can be sampled: every token is banned here"
    ):
        engine_of(model).complete(IDS, Sampling(banned_first=frozenset(range(128))))


def test_logits_that_are_not_finite_are_an_error_of_that_request_alone():
    model = llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[99] = math.nan
    engine = engine_of(model)
    asked = [[5, 6], [5, 99], [7, 8, 9]]
    sampling = Sampling(max_tokens=8, seed=0, banned_ids=frozenset((99,)))
    with ThreadPoolExecutor(3) as pool:
        one, bad, other = (pool.submit(engine.complete, ids, sampling) for ids in asked)
    assert len(one.result().ids) == len(other.result().ids) == 8
    with pytest.raises(ModelError, match="not finite numbers"):
        bad.result()


@pytest.mark.parametrize("ids", [[], [5, 128], [-1]])
def test_tokens_that_the_model_does_not_have_are_refused(model, ids):
    with pytest.raises(ModelError, match="from 0 to 127"):
        engine_of(model).complete(ids, GREEDY)
    with pytest.raises(ModelError, match="from 0 to 127"):
        engine_of(model).complete([5], replace(GREEDY, end_id=128))


@pytest.mark.parametrize(
    "mistake", [RuntimeError("CUDA out of memory. Tried\nto"), TypeError("a bug")]
)
def test_a_model_that_fails_fails_for_all_active_requests_and_goes_on_with_the_next(
    mistake,
):
    model = llama()
    engine = engine_of(model, 4)
    expected = engine.complete(IDS, GREEDY)

    def fail(*_):
        raise mistake

    hook = model.lm_head.register_forward_pre_hook(fail)
    asked = prompts(6)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(engine.complete, ids, GREEDY) for ids in asked]
    wanted = ModelError if isinstance(mistake, RuntimeError) else TypeError
    for call in calls:
        with pytest.raises(
            wanted, match=r"tiny: the model failed: CUDA out of memory. Tried$|a bug"
        ):
            call.result()
    hook.remove()
    assert engine.complete(IDS, GREEDY) == expected
    assert model.config._attn_implementation != engine_module.DOCUMENT_MASKING


def slowly(model, seconds):
    return model.lm_head.register_forward_pre_hook(lambda *_: time.sleep(seconds))


@pytest.mark.slow
def test_ctrl_c_reaches_a_waiting_caller_and_its_request_is_dropped():
    model = llama()
    engine = engine_of(model, 1)
    engine.complete(IDS, GREEDY)
    hook = slowly(model, 0.02)
    timer = threading.Timer(
        0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    )
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.complete(IDS, replace(GREEDY, max_tokens=200))
    hook.remove()
    before = engine.tokens_processed
    assert engine.complete(IDS, GREEDY).ids == generate(model, IDS)
    # The step that was under way, and this.
    assert engine.tokens_processed <= before + 1 + 15
    assert not any(row.busy for row in engine._cache.rows)


def test_a_process_that_is_forked_in_the_middle_of_a_step_works_by_itself():
    model = llama()
    engine = engine_of(model, 2)
    expected = engine.complete(IDS, GREEDY)
    hook = slowly(model, 0.02)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.complete, [9, 9, 9], GREEDY)
        while not engine.lock.locked():
            time.sleep(0.001)
        if (child := os.fork()) == 0:
            hook.remove()
            os._exit(0 if engine.complete(IDS, GREEDY) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert running.result().ids == generate(model, [9, 9, 9])


def test_the_worker_ends_when_there_is_nothing_to_do_and_begins_again(
    model, monkeypatch
):
    monkeypatch.setattr(engine_module, "IDLE", 0.05)
    engine = engine_of(model)
    for _ in range(2):
        engine.complete(IDS, GREEDY)
        worker = engine._worker
        worker.join(2)
        assert not worker.is_alive() and engine._worker is None


def test_waiting_requests_fail_when_python_ends():
    model = llama()
    engine = engine_of(model, 1)
    engine.complete(IDS, GREEDY)
    slowly(model, 0.02)
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(engine.complete, ids, replace(GREEDY, max_tokens=200))
            for ids in prompts(3)
        ]
        while len(engine._waiting) < 2:
            time.sleep(0.001)
        engine.stop()
        for call in calls:
            with pytest.raises(ModelError, match="cancelled"):
                call.result(timeout=2)


def test_a_worker_that_ends_its_last_step_stops_at_once(model, monkeypatch):
    """Its caller has the answer before the step is over, and may stop it then."""
    monkeypatch.setattr(engine_module, "IDLE", 30)
    engine = engine_of(model)
    step = engine._step

    def late_step():
        step()
        time.sleep(0.2)

    engine._step = late_step
    engine.complete(IDS, replace(GREEDY, max_tokens=1))
    begun = time.monotonic()
    engine.stop()
    assert time.monotonic() - begun < 10


# --- architectures --------------------------------------------------------------------------------


def long_rope(positions):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(
        pad_token_id=0,
        max_position_embeddings=positions,
        original_max_position_embeddings=64,
        rope_parameters=rope,
        **SIZES,
        **HEADS,
    )
    return Phi3ForCausalLM(config)


ARCHITECTURES = {
    "sliding window": (
        lambda: MistralForCausalLM(MistralConfig(sliding_window=6, **SIZES, **HEADS)),
        "kv_cache",
    ),
    "window in the mask alone": (
        lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                sliding_window=6,
                use_sliding_window=True,
                max_window_layers=1,
                num_experts=2,
                num_experts_per_tok=1,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=32,
                **SIZES,
                **HEADS,
            )
        ),
        "transformers_cache",
    ),
    "caps": (
        lambda: Gemma2ForCausalLM(
            Gemma2Config(head_dim=8, sliding_window=6, **SIZES, **HEADS)
        ),
        "transformers_cache",
    ),
    "longrope": (lambda: long_rope(256), "transformers_cache"),
    "state space": (
        lambda: MambaForCausalLM(
            MambaConfig(
                vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4
            )
        ),
        "transformers_cache",
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_get_what_transformers_gives_them_in_every_mode(name):
    make, mode = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = make().eval()
    engine, asked = engine_of(model, 4), prompts(4)
    found = together(engine, asked, [GREEDY] * 4)
    assert engine.mode == mode
    assert [one.ids for one in found] == [generate(model, ids) for ids in asked]


def test_a_row_that_was_half_copied_for_want_of_memory_is_not_used_again(
    model, monkeypatch
):
    """After the 20 tokens of the prompt, a row holds the first sampled one. It grows for another
    prompt, of which it knows 20; memory runs out when one layer of two is copied. Then comes a
    prompt with the sampled one."""
    engine, first = engine_of(model), list(range(5, 25))
    sampled = engine.complete(first, replace(GREEDY, max_tokens=2)).ids[0]
    following = [*first, sampled, 7]
    expected = engine_of(model).complete(following, GREEDY).ids
    room, made = kv_cache._allocate, iter(range(99))

    def fails(states, capacity):
        if next(made) == 2:
            raise torch.OutOfMemoryError("no more")
        return room(states, capacity).fill_(math.nan)

    monkeypatch.setattr(kv_cache, "_allocate", fails)
    with pytest.raises(ModelError, match="no more"):
        engine.complete([*first, (sampled + 1) % 128, 8], GREEDY)
    monkeypatch.setattr(kv_cache, "_allocate", room)
    assert engine.complete(following, GREEDY).ids == expected


def test_a_cache_that_gives_other_logits_is_not_used(monkeypatch):
    torch.manual_seed(0)
    model = ARCHITECTURES["caps"][0]().eval()
    expected = [generate(model, ids) for ids in prompts(3)]
    forward = model.forward

    def forgets(*args, past_key_values=None, **options):
        return forward(*args, **options)

    model.forward = forgets
    engine = engine_of(model)
    assert [engine.complete(ids, GREEDY).ids for ids in prompts(3)] == expected
    assert engine.mode == "no_cache"


def test_the_model_has_its_own_attention_for_whoever_holds_the_lock(model):
    """Scoring uses document masking; both at once, again and again, get what each gets
    alone."""
    from userlm.models.attention import document_masking, target_logits

    rows = [([5, 6, 7, 8, 9], [False, True, True, False, True])]
    engine = engine_of(model, 4)
    asked = prompts(20, seed=7)
    expected = [engine.complete(ids, GREEDY).ids for ids in asked]
    check_document_masking(model, "tiny", CONTEXT_LENGTH)
    with document_masking(model), torch.no_grad():
        alone = target_logits(model, rows)[0]
    stop = threading.Event()

    def score():
        while not stop.is_set():
            with engine.lock, document_masking(model), torch.no_grad():
                assert torch.equal(target_logits(model, rows)[0], alone)
            # Or it takes the lock again before whoever waits for it wakes up.
            time.sleep(0.001)
        return True

    with ThreadPoolExecutor(5) as pool:
        scoring = pool.submit(score)
        found = list(pool.map(lambda ids: engine.complete(ids, GREEDY).ids, asked))
        stop.set()
        assert scoring.result()
    assert found == expected
    assert model.config._attn_implementation == "sdpa"
