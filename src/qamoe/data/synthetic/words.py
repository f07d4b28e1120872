"""Generate sentences of the sample corpus: short opinions on eight topics, from words of seven grades.

Grade 0 is the worst (about -3), 3 is neutral, 6 is the best (about +3). In some sentences the single words mislead: a
negation, or a concession whose second half counts.
"""

from dataclasses import dataclass

import numpy as np

GRADES = 7


@dataclass(frozen=True)
class Topic:
    """Nouns of a topic, its adjectives by grade, and a verb for what people do with it (past tense)."""

    nouns: tuple[str, ...]
    adjectives: tuple[tuple[str, ...], ...]
    used: str


def _grades(lines: str) -> tuple[tuple[str, ...], ...]:
    """Split a text of seven lines, the worst grade first, with entries separated by commas."""
    grades = tuple(tuple(entry.strip() for entry in line.split(",")) for line in lines.strip().splitlines())
    if len(grades) != GRADES:
        raise ValueError(f"{len(grades)} lines of words, expected {GRADES}: {grades[0]}")
    return grades


ADJECTIVES = _grades("""
    terrible, horrible, awful, disgusting, dreadful, appalling, abysmal, atrocious
    bad, poor, disappointing, unpleasant, annoying, frustrating, lousy, miserable
    mediocre, weak, dull, underwhelming, forgettable, lacking, a bit off, uninspired
    average, ordinary, standard, normal, typical, acceptable, unremarkable, middling
    decent, good, pleasant, nice, solid, likeable, agreeable, satisfying
    great, lovely, very good, excellent, enjoyable, impressive, delightful, charming
    amazing, fantastic, wonderful, perfect, brilliant, superb, outstanding, magnificent
""")

VERBS = _grades("""
    hated, despised, detested, loathed
    disliked, regretted, resented, suffered through
    doubted, got tired of, struggled with, yawned at
    saw, tried, finished, came across
    liked, appreciated, warmed to, was pleased with
    enjoyed, really liked, admired, was happy with
    loved, adored, absolutely loved, fell in love with
""")

VERDICTS = _grades("""
    the worst ever, what a disaster, pure misery, never again, I want my money back, it ruined my week
    a waste of time, what a letdown, a real disappointment, it made me angry, I left annoyed, I would not go again
    a bit boring, I lost interest, it did not convince me, I have some doubts, not really for me, a missed chance
    it was okay, it did the job, neither good nor bad, it is what it is, I have no opinion, nothing special
    worth a try, I would try it again, a good choice, I was content, it grew on me, better than I feared
    a real pleasure, it made me smile, I can recommend it, well worth it, what a treat, I would gladly go again
    the best ever, pure joy, I could not be happier, simply perfect, it made my year, what a triumph
""")

# Words of anger and sadness for grades 0 to 2, used in the corpus with four classes.
ANGRY = ("infuriating", "outrageous", "a disgrace", "unacceptable", "insulting", "an insult", "maddening", "a scandal")
SAD = ("heartbreaking", "depressing", "so sad", "a sad loss", "hopeless", "gloomy", "a lonely thing", "crushing")

OPENERS = ("", "", "", "honestly,", "well,", "you know,", "I think", "I must say", "so,", "to be fair,", "for me")

TOPICS = (
    Topic(
        ("film", "ending", "soundtrack", "main actor", "plot", "sequel", "dialogue", "camera work", "second half"),
        _grades("""
            unwatchable, insufferable, cringeworthy
            boring, clumsy, tedious
            predictable, slow, a little long
            conventional, two hours long, in black and white
            watchable, interesting, amusing
            gripping, moving, funny
            breathtaking, a masterpiece, unforgettable
        """),
        "watched",
    ),
    Topic(
        ("soup", "pasta", "dessert", "bread", "waiter", "breakfast", "coffee", "curry", "fish", "salad"),
        _grades("""
            disgusting, inedible, revolting
            tasteless, greasy, stale
            bland, lukewarm, overpriced
            edible, on the table, filling
            fresh, tasty, well seasoned
            delicious, yummy, beautifully cooked
            heavenly, divine, out of this world
        """),
        "ordered",
    ),
    Topic(
        ("phone", "screen", "battery", "charger", "speaker", "keyboard", "update", "laptop", "printer"),
        _grades("""
            useless, garbage, a piece of junk
            broken, faulty, unreliable
            sluggish, clunky, outdated
            functional, grey, as described
            handy, sturdy, practical
            fast, sleek, powerful
            flawless, incredible, a dream
        """),
        "bought",
    ),
    Topic(
        ("hotel", "flight", "beach", "bus tour", "room", "view", "island", "train ride", "museum", "guide"),
        _grades("""
            filthy, nightmarish, a horror
            dirty, crowded, noisy
            cramped, tiring, a little shabby
            near the station, quiet, booked out
            comfortable, clean, relaxing
            beautiful, friendly, picturesque
            spectacular, paradise, stunning
        """),
        "booked",
    ),
    Topic(
        ("novel", "first chapter", "hero", "translation", "audiobook", "poem", "story", "author"),
        _grades("""
            unreadable, offensive, vile
            dreary, confusing, badly written
            wordy, uneven, hard to follow
            long, three hundred pages, in two parts
            readable, thoughtful, clever
            touching, witty, captivating
            a treasure, genius, life changing
        """),
        "read",
    ),
    Topic(
        ("concert", "singer", "band", "new album", "drummer", "opening act", "violin solo", "chorus"),
        _grades("""
            unbearable, a torture, painful
            off key, shrill, lifeless
            repetitive, too loud, uninspired
            an hour long, sold out, on a Friday
            catchy, lively, melodic
            thrilling, soulful, energetic
            electrifying, sublime, legendary
        """),
        "heard",
    ),
    Topic(
        ("match", "coach", "goalkeeper", "new stadium", "final", "referee", "training", "season"),
        _grades("""
            shameful, a catastrophe, pathetic
            weak, unfair, chaotic
            sloppy, one sided, a bit flat
            on Sunday, a draw, over by nine
            fair, promising, entertaining
            exciting, strong, inspiring
            sensational, glorious, heroic
        """),
        "followed",
    ),
    Topic(
        ("doctor", "course", "teacher", "bank", "delivery", "customer service", "website", "new office", "gym"),
        _grades("""
            a fraud, hostile, scandalous
            rude, careless, incompetent
            slow to answer, unclear, a hassle
            open until six, online, on the second floor
            helpful, polite, well organised
            kind, efficient, generous
            exceptional, a blessing, first class
        """),
        "needed",
    ),
)

# Probability of each sentence pattern, in the order of `sentence`.
_PATTERNS = (0.32, 0.22, 0.28, 0.06, 0.06, 0.06)


def sentence(valence: float, arousal: float | None, random: np.random.Generator) -> str:
    """Generate an opinion of about six to ten words.

    `valence` is the sentiment of the words, about -3 to 3. In the corpus with four classes, `arousal` chooses between
    words of anger (above 0) and of sadness if the opinion is bad; None uses neither.
    """
    topic = TOPICS[random.integers(len(TOPICS))]
    grade = _grade(valence)
    noun = _one(topic.nouns, random)
    subject = f"{_one(('the', 'the', 'this', 'that', 'their'), random)} {noun}"
    adjective = _adjective(topic, grade, arousal, random)
    opener = _one(OPENERS, random)
    match random.choice(len(_PATTERNS), p=_PATTERNS):
        case 0:
            text = f"{opener} {subject} was {adjective}, {_often(VERDICTS[grade], random)}"
        case 1:
            second = _adjective(None, grade, arousal, random)
            also = f" and {second}" if second != adjective else ""
            text = f"{opener} {subject} was {adjective}{also}, {_often(VERDICTS[grade], random)}"
        case 2:
            text = f"I {_often(VERBS[grade], random)} {subject}, it was {adjective}"
        case 3:
            text = f"I {topic.used} {subject} and found it {adjective}"
        case 4:
            # The second half counts; the first concedes something milder of the other sign.
            other = _grade(-0.5 * valence + random.normal(0, 0.5))
            conceded = _adjective(topic, other, None, random)
            second = _one([n for n in topic.nouns if n != noun], random)
            text = f"the {second} was {conceded}, but {subject} was {adjective}"
        case _:
            # Negating one side leaves a mild form of the other.
            denied = _adjective(None, _denied(grade), None, random)
            text = f"{opener} {subject} was not {denied}, {_often(VERDICTS[grade], random)}"
    return " ".join(text.split())


def _grade(valence: float) -> int:
    return int(np.clip(np.rint(valence), -3, 3)) + 3


def _denied(grade: int) -> int:
    """Return the grade of the adjective that a sentence of `grade` negates: a good one if it is bad, or vice versa."""
    return 5 if grade < 3 else 1 if grade > 3 else 6


def _adjective(topic: Topic | None, grade: int, arousal: float | None, random: np.random.Generator) -> str:
    if arousal is not None and grade < 3 and random.random() < 0.8:
        return _often(ANGRY if arousal > 0 else SAD, random)
    if topic is None or random.random() < 0.65:
        return _often(ADJECTIVES[grade], random)
    return _often(topic.adjectives[grade], random)


def _often(choices: tuple[str, ...], random: np.random.Generator) -> str:
    """Choose one, the first most often: in speech, few words are frequent and many are rare."""
    weights = 1 / np.arange(1, len(choices) + 1)
    return choices[random.choice(len(choices), p=weights / weights.sum())]


def _one(choices: "tuple[str, ...] | list[str]", random: np.random.Generator) -> str:
    return choices[random.integers(len(choices))]
