"""Questions about short paragraphs of odd characters and spaces, for tests."""

from pathlib import Path

import numpy as np

WORDS = ["good", "fine", "film", "plot", "naïve", "电影", "the", "was", "is", "K2", "Ödön", "🎬", "x.y"]
SPACES = [" ", "  ", "\n", "\u00a0", " \t "]


def paragraph(count: int, generator: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    """Return a text of some words, and the characters that each word starts at and ends before."""
    text, places = "", []
    for _ in range(count):
        word = WORDS[generator.integers(len(WORDS))]
        places.append((len(text), len(text) + len(word)))
        text += word + SPACES[generator.integers(len(SPACES))]
    return text, places


def columns(questions: int, seed: int, longest: int = 60) -> dict[str, list]:
    """Return the columns of a split in which every paragraph has its own length and every answer is of whole words."""
    generator = np.random.default_rng(seed)
    table: dict[str, list] = {"id": [], "title": [], "context": [], "question": [], "answers": []}
    for number in range(questions):
        text, places = paragraph(int(generator.integers(3, longest)), generator)
        first = int(generator.integers(len(places)))
        last = min(len(places) - 1, first + int(generator.integers(4)))
        start, end = places[first][0], places[last][1]
        table["id"].append(f"{seed}-{number}")
        table["title"].append("films")
        table["context"].append(text)
        table["question"].append("  what was " + "the " * int(generator.integers(4)) + "film")
        table["answers"].append({"text": [text[start:end], "good"], "answer_start": [start, 0]})
    return table


def write_split(path: Path, table: dict[str, list]) -> None:
    import pandas

    path.parent.mkdir(exist_ok=True)
    pandas.DataFrame(table).to_parquet(path)


def write_squad(folder: Path, train: int = 24, validation: int = 9, test: int = 5) -> Path:
    """Make a folder of train, validation and (without answers) test questions."""
    for seed, (split, count) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        table = columns(count, seed)
        if split == "test":
            table.pop("answers")
        write_split(folder / f"{split}.parquet", table)
    return folder
