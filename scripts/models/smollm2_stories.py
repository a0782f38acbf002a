"""Short stories about things that people have, get and lose, each in English and in Spanish.

`scripts/train_smollm2_specialists.py` makes its training data and its tasks from them. A story is drawn from an
explicit generator and is the same story in both languages; the caller decides how it is rendered: as a problem, as a
text to translate, or as a text to read. Every story takes exactly two calculations, and its answer is none of its own
numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

FEMALE = (
    "Ana", "Marta", "Lucy", "Elena", "Rosa", "Clara", "Emma", "Sofia", "Laura", "Nora",
    "Julia", "Carmen", "Paula", "Irene", "Alice", "Diana", "Eva", "Sara", "Olivia", "Grace",
)  # fmt: skip
MALE = (
    "Tom", "Pedro", "Luis", "Carlos", "Mario", "David", "Hugo", "Pablo", "Leo", "Bruno",
    "Sam", "Jorge", "Ivan", "Oscar", "Diego", "Marcos", "Peter", "Adam", "Victor", "Felix",
)  # fmt: skip

# English plural, Spanish plural, Spanish ending of "how many" (cuántos, cuántas).
OBJECTS = (
    ("apples", "manzanas", "a"), ("oranges", "naranjas", "a"), ("pencils", "lápices", "o"),
    ("books", "libros", "o"), ("eggs", "huevos", "o"), ("flowers", "flores", "a"),
    ("stones", "piedras", "a"), ("keys", "llaves", "a"), ("shirts", "camisas", "a"),
    ("stamps", "sellos", "o"), ("candles", "velas", "a"), ("cups", "tazas", "a"),
    ("plates", "platos", "o"), ("spoons", "cucharas", "a"), ("marbles", "canicas", "a"),
    ("coins", "monedas", "a"), ("cookies", "galletas", "a"), ("sweets", "caramelos", "o"),
    ("balloons", "globos", "o"), ("letters", "cartas", "a"), ("shells", "conchas", "a"),
    ("toys", "juguetes", "o"), ("nuts", "nueces", "a"), ("buttons", "botones", "o"),
    ("hats", "sombreros", "o"), ("dolls", "muñecas", "a"), ("chairs", "sillas", "a"),
    ("bottles", "botellas", "a"), ("pears", "peras", "a"), ("rings", "anillos", "o"),
)  # fmt: skip
CONTAINERS = (
    ("boxes", "cajas", "una"), ("bags", "bolsas", "una"), ("baskets", "cestas", "una"),
    ("drawers", "cajones", "uno"), ("rows", "filas", "una"), ("jars", "frascos", "uno"),
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One kind of sentence: its sign, its English note and its wordings, an English and a Spanish one each.

    In the wordings, n is the person, f the other one, P, p and h stand for She, she and her, k for the number and o
    for the things.
    """

    sign: str
    note: str
    wordings: tuple[tuple[str, str], ...]


EVENTS = (
    Turn("+", "buys", (
        ("{P} buys {k} {o}.", "Compra {k} {o}."),
        ("Then {p} buys {k} more.", "Luego compra {k} más."))),
    Turn("+", "finds", (
        ("{P} finds {k} {o}.", "Encuentra {k} {o}."),
        ("{P} finds {k} on the street.", "Encuentra {k} en la calle."))),
    Turn("+", "gets", (
        ("{f} gives {h} {k}.", "{f} le da {k}."),
        ("For {r} birthday {p} gets {k}.", "Por su cumpleaños le regalan {k}."))),
    Turn("+", "wins", (
        ("{P} wins {k} {o}.", "Gana {k} {o}."),
        ("Later {p} wins {k} more.", "Más tarde gana {k} más."))),
    Turn("+", "picks", (
        ("{P} picks up {k} {o}.", "Recoge {k} {o}."),
        ("On the way {p} picks up {k}.", "Por el camino recoge {k}."))),
    Turn("-", "loses", (
        ("{P} loses {k} {o}.", "Pierde {k} {o}."),
        ("On the way {p} loses {k}.", "Por el camino pierde {k}."))),
    Turn("-", "sells", (
        ("{P} sells {k} {o}.", "Vende {k} {o}."),
        ("{P} sells {k} to {f}.", "Le vende {k} a {f}."))),
    Turn("-", "gives", (
        ("{P} gives {k} to {f}.", "Le da {k} a {f}."),
        ("{P} gives away {k} {o}.", "Regala {k} {o}."))),
    Turn("-", "throws", (
        ("{P} throws away {k} {o}.", "Tira {k} {o}."),
        ("Later {p} throws away {k}.", "Más tarde tira {k}."))),
    Turn("-", "lends", (
        ("{P} lends {k} {o} to {f}.", "Le presta {k} {o} a {f}."),
        ("Then {p} lends {k} to a neighbor.", "Luego le presta {k} a un vecino."))),
    Turn("-", "leaves", (
        ("{P} leaves {k} {o} at school.", "Deja {k} {o} en la escuela."),
        ("{P} leaves {k} on the street.", "Deja {k} en la calle."))),
    Turn("-", "breaks", (
        ("{P} breaks {k} {o}.", "Rompe {k} {o}."),
        ("{P} falls and breaks {k}.", "Se cae y rompe {k}."))),
    Turn("*2", "twice", (
        ("Soon {p} has twice as many.", "Pronto tiene el doble."),
        ("The next day {p} has twice as many.", "Al día siguiente tiene el doble."))),
    Turn("/2", "half", (
        ("{P} gives half of them to {f}.", "Le da la mitad a {f}."),
        ("{P} breaks half of them.", "Rompe la mitad."))),
)  # fmt: skip
PLAIN = Turn("", "", (
    ("{n} has {a} {o}.", "{n} tiene {a} {o}."),
    ("There are {a} {o} on {n}'s table.", "Hay {a} {o} en la mesa de {n}.")))  # fmt: skip
PACKED = Turn("*", "each", (
    ("{n} has {a} {c} with {b} {o} in each one.", "{n} tiene {a} {c} con {b} {o} en cada {u}."),
    ("{n} fills {a} {c} with {b} {o} each.", "{n} llena {a} {c} con {b} {o} cada {u}.")))  # fmt: skip
QUESTIONS = (
    ("How many {o} does {n} have now?", "¿Cuánt{g}s {o} tiene {n} ahora?"),
    ("How many does {n} have in the end?", "¿Cuánt{g}s tiene {n} al final?"),
)


@dataclass(frozen=True)
class Story:
    """One story in both languages. `notes` are what happens, in English: a word and its equation."""

    english: tuple[str, ...]
    spanish: tuple[str, ...]
    question_english: str
    question_spanish: str
    notes: tuple[tuple[str, str], ...]
    answer: int
    name: str
    friend: str
    things: tuple[str, str]

    @property
    def english_text(self) -> str:
        """The story in English, without the question."""
        return " ".join(self.english)

    @property
    def spanish_text(self) -> str:
        """The story in Spanish, without the question."""
        return " ".join(self.spanish)

    @property
    def key(self) -> str:
        """What makes it this story and no other: its English text."""
        return self.english_text

    def worked(self) -> str:
        """Return the English notes, each with its equation; the last number is the answer."""
        return ", ".join(f"{word}: {equation}" for word, equation in self.notes)


def compute(sign: str, total: int, number: int) -> tuple[int, str]:
    """Return the new total and the equation that gives it."""
    match sign:
        case "+":
            result = total + number
        case "-":
            result = total - number
        case "*" | "*2":
            number = 2 if sign == "*2" else number
            result = total * number
        case "/2":
            number, result = 2, total // 2
        case _:
            raise ValueError(f"unknown sign {sign!r}")
    return result, f"{total}{sign[0]}{number}={result}"


def draw_story(draw: random.Random) -> Story | None:
    """Return a story of two calculations, or None where the numbers drawn do not work out."""
    female = draw.random() < 0.5
    name, friend = draw.choice(FEMALE if female else MALE), draw.choice(FEMALE + MALE)
    things, cosas, gender = draw.choice(OBJECTS)
    box, caja, each = draw.choice(CONTAINERS)
    shared = {"n": name, "f": friend, "g": gender}
    english = (
        shared
        | dict(zip("Pphr", ("She", "she", "her", "her") if female else ("He", "he", "him", "his"), strict=True))
        | {"o": things, "c": box}
    )
    spanish = shared | {"o": cosas, "c": caja, "u": each}

    packed = draw.random() < 0.25
    a, b = (draw.randint(2, 6), draw.randint(2, 6)) if packed else (draw.randint(3, 20), 0)
    total, stated, notes = a, [a], []
    if packed:
        total, equation = compute(PACKED.sign, a, b)
        stated.append(b)
        notes.append((PACKED.note, equation))
    events = draw.sample(EVENTS, 1 if packed else 2)
    numbers = [draw.randint(2, 9) for _ in events]
    for event, k in zip(events, numbers, strict=True):
        if event.sign == "/2" and total % 2:
            return None
        total, equation = compute(event.sign, total, k)
        if not 1 <= total <= 50:
            return None
        stated += [k] if event.sign in {"+", "-"} else []
        notes.append((event.note, equation))
    if total in stated or friend == name:
        return None

    sentences = []
    for turn, k in zip((PACKED if packed else PLAIN, *events), (0, *numbers), strict=True):
        in_english, in_spanish = draw.choice(turn.wordings)
        values = {"a": a, "b": b, "k": k}
        sentences.append((in_english.format(**english, **values), in_spanish.format(**spanish, **values)))
    asked = draw.choice(QUESTIONS)
    return Story(
        english=tuple(pair[0] for pair in sentences),
        spanish=tuple(pair[1] for pair in sentences),
        question_english=asked[0].format(**english),
        question_spanish=asked[1].format(**spanish),
        notes=tuple(notes),
        answer=total,
        name=name,
        friend=friend,
        things=(things, cosas),
    )


def stories(seed: int, without: set[str] | None = None) -> Iterator[Story]:
    """Yield stories without end, none twice and none whose key is in `without`."""
    draw, seen = random.Random(seed), set(without or ())
    while True:
        story = draw_story(draw)
        if story is not None and story.key not in seen:
            seen.add(story.key)
            yield story
