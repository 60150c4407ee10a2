import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.data.windows import MAX_QUESTION_TOKENS, cut_questions, cut_windows
from fedgram.errors import ConfigurationError
from tiny_squad import SPACES, WORDS
from tiny_tokenizer import make_tokenizer

QUESTION = "what was the film"


def byte_tokenizer(folder):
    """One token for every byte, as a model of RoBERTa's or GPT-2's kind has it for rare characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: place for place, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=512)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "words": make_tokenizer(folder, ["good", "film", "was", "the", "na", "##ive"]),
        "bytes": byte_tokenizer(folder),
    }


def windows_of(table, example):
    """Of each window of a question: its characters (context tokens only) and their places in the window."""
    for row in np.flatnonzero(table.extra["example"] == example):
        cells = slice(table.offsets[row], table.offsets[row + 1])
        starts, ends = table.extra["char_starts"][cells], table.extra["char_ends"][cells]
        places = np.flatnonzero(starts >= 0)
        yield row, [(int(starts[p]), int(ends[p])) for p in places], places


@st.composite
def asked(draw):
    """A context, and the characters of an answer of whole words in it."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=25))
    text, places = draw(st.sampled_from(["", *SPACES])), []
    for word in words:
        places.append((len(text), len(text) + len(word)))
        text += word + draw(st.sampled_from(SPACES))
    first = draw(st.integers(0, len(places) - 1))
    last = draw(st.integers(first, min(len(places) - 1, first + 3)))
    return text, (places[first][0], places[last][1])


@pytest.mark.parametrize("kind", ["words", "bytes"])
@settings(deadline=None, max_examples=60)
@given(st.lists(asked(), min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 20))
def test_windows_cover_the_context_and_label_the_answer(tokenizers, kind, questions, stride, room):
    tokenizer = tokenizers[kind]
    own = len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"]) + tokenizer.num_special_tokens_to_add(
        pair=True
    )
    max_length = own + stride + room
    contexts, spans = zip(*questions, strict=True)
    table = cut_windows([QUESTION] * len(contexts), contexts, np.array(spans), tokenizer, max_length, stride)
    assert table.lengths.max() <= max_length
    assert sorted(set(table.extra["example"].tolist())) == list(range(len(contexts)))
    for example, (context, (begin, end)) in enumerate(questions):
        encoding = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
        tokens = [tuple(pair) for pair in encoding["offset_mapping"]]
        answer = [i for i, (first, last) in enumerate(tokens) if last > begin and first < end]
        step, labelled = 0, False
        for row, chars, places in windows_of(table, example):
            assert chars == tokens[step : step + len(chars)]
            whole = step <= answer[0] and answer[-1] < step + len(chars)
            first, last = table.labels[row].tolist()
            if (first, last) == (0, 0):
                assert not whole
            else:
                assert table.extra["char_starts"][table.offsets[row] + first] == begin
                assert context[begin : table.extra["char_ends"][table.offsets[row] + last]] == context[begin:end]
                labelled = True
            ids = table.ids[table.offsets[row] : table.offsets[row + 1]]
            assert ids[places].tolist() == encoding["input_ids"][step : step + len(chars)]
            reached = step + len(chars)
            step = reached - stride
        assert reached == len(tokens)
        assert labelled or len(answer) > stride + 1


def test_the_question_comes_first_and_types_tell_it_from_the_context(tokenizers):
    table = cut_windows(["the film"], ["good film was good"], None, tokenizers["words"], 16, 2)
    assert table.ids.tolist() == tokenizers["words"]("the film", "good film was good")["input_ids"]
    assert table.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert table.extra["char_starts"].tolist() == [-1, -1, -1, -1, 0, 5, 10, 14, -1]
    assert table.extra["char_ends"].tolist() == [-1, -1, -1, -1, 4, 9, 13, 18, -1]
    assert table.labels.tolist() == [[-1, -1]]
    assert cut_windows(["a"], ["b"], None, tokenizers["bytes"], 16, 2).type_ids is None


def test_an_answer_inside_of_a_word_is_labelled_with_the_word(tokenizers):
    table = cut_windows(["the film"], ["was naive film"], np.array([[5, 7]]), tokenizers["words"], 16, 2)
    assert table.labels.tolist() == [[5, 6]]  # "na" and "##ive"


def test_a_question_without_a_known_place_is_labelled_nowhere(tokenizers):
    table = cut_windows(["the film"], ["good film"], np.array([[-1, -1]]), tokenizers["words"], 16, 2)
    assert table.labels.tolist() == [[0, 0]]


def test_a_context_without_a_token_still_has_a_window(tokenizers):
    table = cut_windows(["film", "film"], [" ", ""], None, tokenizers["words"], 16, 2)
    assert table.extra["example"].tolist() == [0, 1]
    assert (table.extra["char_starts"] == -1).all()


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_long_questions_lose_their_end(tokenizers, kind):
    long = "\n  " + "film was naive " * 60
    (cut,) = cut_questions([long], tokenizers[kind])
    assert long.strip().startswith(cut)
    assert len(tokenizers[kind](cut, add_special_tokens=False)["input_ids"]) == MAX_QUESTION_TOKENS
    assert cut_questions(["  the film "], tokenizers[kind]) == ["the film"]


def test_what_leaves_no_room_is_refused(tokenizers):
    """Two question tokens, three special ones, and a stride of 4: the tenth token is the first to get ahead."""
    words, arguments = tokenizers["words"], (["the film"], ["good " * 20], None)
    message = r"max_length 9 leaves 4 tokens .* question of 2 tokens and 3 special .* share 4: set .* more than 9,"
    with pytest.raises(ConfigurationError, match=message):
        cut_windows(*arguments, words, 9, 4)
    assert len(cut_windows(*arguments, words, 10, 4)) == 16
    with pytest.raises(ConfigurationError, match="leaves 0 tokens"):
        cut_windows(["the film " * 9], ["good"], None, words, 8, 0)
    with pytest.raises(ConfigurationError, match="the model takes 512 tokens at most"):
        cut_windows(*arguments, words, 513, 4)


def test_only_fast_tokenizers_say_where_tokens_come_from():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigurationError, match=r"only a fast tokenizer says so; got Slow"):
        cut_windows(["a"], ["b"], None, Slow(), 16, 2)
