"""The policy made on the spot: its tokens, and that others can load it."""

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.model.policy import load_policy, load_tokenizer
from learner.warm_start.tiny import build_random_model, build_tiny, find_tags, train_tokenizer
from protocol.chat_format import ChatFormat
from protocol.prompting import Prompter
from tests.fixtures.learner import TURNS, small_config

MODEL = small_config().model.tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny(path, MODEL, TURNS, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(MODEL, TURNS)


@given(st.text())
def test_any_text_survives_its_tokens(tokenizer, text):
    # The three special tokens are no text; everything else is, the tags included.
    text = text.replace("<|", "")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_tags_are_single_tokens_and_stay_in_the_text(tokenizer):
    response = TURNS[0][1]
    encoding = tokenizer.encode(response)
    assert [
        encoding.tokens.count(tag) for tag in ("<think>", "</think>", "<action>", "</action>")
    ] == [1, 1, 1, 1]
    assert tokenizer.decode(encoding.ids, skip_special_tokens=True) == response


def test_names_and_numbers_are_the_same_tokens_wherever_they_stand(tokenizer):
    name = tokenizer.token_to_id("Ġcabinet")
    number = tokenizer.token_to_id("Ġ12")
    for text in ("go to cabinet 12", "You see a cabinet 12.", "; take mug 1 from cabinet 12; look"):
        ids = tokenizer.encode(text).ids
        assert ids[ids.index(name) + 1] == number


def test_tags_are_those_of_the_demonstrations():
    assert find_tags(
        [("<information>\nDoc 1: <b>\n</information>", "<think>why</think>\n<search> x </search>")]
    ) == ["<think>", "</think>", "<search>", "</search>", "<information>", "<b>", "</information>"]


@pytest.mark.parametrize(
    "name", ["Bhutan", "São Tomé and Príncipe", "Bab el Mandeb 12", "Côte d'Ivoire"]
)
def test_words_that_no_demonstration_has_are_the_same_tokens_wherever_they_stand(name):
    tokenizer = train_tokenizer(msgspec.structs.replace(MODEL, tokens="words"), TURNS)
    copied = tokenizer.encode(f" {name}").ids
    for text in (
        f"The capital of {name} is Thimphu.",
        f"is it in {name}?",
        f"<search> {name} </search>",
        f"<search> capital of {name} </search>",
    ):
        ids = tokenizer.encode(text).ids
        assert any(ids[start : start + len(copied)] == copied for start in range(len(ids)))


def test_vocabulary_too_small_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match=r"model\.tiny\.vocabulary"):
        train_tokenizer(msgspec.structs.replace(MODEL, vocabulary=200), TURNS)


def test_special_tokens_are_not_shown(tokenizer):
    ids = tokenizer.encode("look<|im_end|>").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "look"


def test_transformers_loads_model_and_tokenizer(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert (
        tokenizer.eos_token == "<|im_end|>"
        and model.generation_config.eos_token_id == tokenizer.eos_token_id
    )
    assert model.config.vocab_size == len(tokenizer) and model.dtype == torch.float32
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    assert out.shape[1] <= 5


def test_actors_and_transformers_agree_on_the_prompt(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompter = Prompter(
        (directory / "tokenizer.json").read_bytes(), ChatFormat(tokenizer.chat_template)
    )
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": TURNS[0][0]}], add_generation_prompt=True, return_dict=False
    )
    assert prompter.encode_prompt(TURNS[0][0]) == list(expected)
    # <|im_start|> user\n … <|im_end|> \n <|im_start|> assistant\n
    assert len(expected) == len(load_tokenizer(directory).encode(TURNS[0][0]).ids) + 6


def test_weights_follow_the_seed_and_leave_the_callers_random_state(tokenizer):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second, other = (
        build_random_model(MODEL, tokenizer, seed).model.embed_tokens.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("hidden", [64, 128, 192])
def test_weights_do_not_depend_on_the_number_of_threads(tokenizer, hidden):
    """Weights do not depend on the number of threads.

    Or else the same policy would be warm-started again, and again, under another key of the cache.
    """
    settings = msgspec.structs.replace(MODEL, hidden_size=hidden)
    before = torch.get_num_threads()
    models = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        models.append(build_random_model(settings, tokenizer, seed=0).state_dict())
    torch.set_num_threads(before)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"model\.tiny\.vocabulary"):
        build_tiny(
            tmp_path / "policy", msgspec.structs.replace(MODEL, vocabulary=200), TURNS, seed=0
        )
    assert list(tmp_path.iterdir()) == []


def test_loaded_policy_computes_in_float32(directory):
    model = load_policy(directory)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
