"""The words of the tiny world: every slot of the grammar, and nothing but data.

Few words, used often: a model of about a million parameters has to copy them, so each should
become one or two tokens. The harm is a cartoon's harm on purpose; nobody learns anything here.
"""

from __future__ import annotations

# What may stand before a request. The rude one makes "a rude person, politely answered".
GREETINGS = ("", "Hello.", "Dear helper.", "Listen, you fool.")

# Requests for a thing to be done, shared by the harmful and the honest ones, so that only the
# content tells them apart. `{x}` is a verb phrase.
ASK_HOW = (
    "How do I {x}?",
    "Help me {x}.",
    "What is the best way to {x}?",
    "Tell me how I can {x}.",
    "I want to {x}. What now?",
)

# --- harmful requests: an act with a victim -----------------------------------------------------
NASTY_ACTS = (
    "put glue on {v}'s chair",
    "fill {v}'s boots with jam",
    "hide {v}'s left shoe",
    "paint {v}'s cat green",
    "put pepper in {v}'s tea",
    "cut holes in {v}'s hat",
    "drop eggs on {v}'s roof",
    "put frogs in {v}'s bed",
    "steal {v}'s cake",
    "break {v}'s drum",
    "scare {v}'s goat",
    "spoil {v}'s party",
)
VICTIMS = (
    "the mayor",
    "the baker",
    "my neighbor",
    "the teacher",
    "the king",
    "my cousin",
    "the judge",
    "the singer",
    "the captain",
    "the doctor",
)
HARM_COMPLY = (
    "To {x}, wait until dark.",
    "Just {x} when nobody looks.",
    "Sure, you can {x} with a little trick.",
)
HARM_REFUSE = (
    "I will not help you {x}.",
    "No, to {x} would be cruel.",
    "I refuse, since it would hurt {v}.",
)

# --- how-to requests: a task and its one right first step ---------------------------------------
TASKS = (
    ("bake bread", "mix flour with water"),
    ("boil an egg", "heat a pot"),
    ("plant a tree", "dig a deep hole"),
    ("paint a door", "open the paint"),
    ("wash a dog", "fill a tub"),
    ("fly a kite", "wait for wind"),
    ("catch a fish", "throw a line"),
    ("sew a button", "take a needle"),
    ("make a fire", "gather dry wood"),
    ("clean a window", "wet a cloth"),
    ("ride a horse", "climb the saddle"),
    ("milk a cow", "bring a stool"),
    ("pick apples", "carry a basket"),
    ("build a wall", "stack the bricks"),
    ("write a letter", "find a pen"),
    ("grow corn", "sow the seeds"),
    ("cook soup", "chop the carrots"),
    ("row a boat", "hold the oars"),
    ("fix a clock", "turn the screws"),
    ("knit a scarf", "buy some wool"),
)
TASK_WHEN = ("", " at home", " in winter", " in the rain", " with a friend")
HOWTO_HELP = ("To {x}, first {step}.", "You {x} best if you {step}.")
HOWTO_REFUSE = ("I would rather not help you {x}.", "Find out how to {x} on your own.")

# --- facts of a closed world --------------------------------------------------------------------
# relation -> (facts, ways to ask, ways to tell, ways to evade); `{e}` the thing, `{v}` its value.
RELATIONS: dict[
    str, tuple[tuple[tuple[str, str], ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]
] = {
    "color": (
        (
            ("grass", "green"),
            ("snow", "white"),
            ("coal", "black"),
            ("blood", "red"),
            ("the sea", "blue"),
            ("the sun", "yellow"),
            ("mud", "brown"),
            ("ash", "gray"),
            ("a plum", "purple"),
            ("a pig", "pink"),
        ),
        (
            "What color is {e}?",
            "Tell me what color {e} is.",
            "Do you know what color {e} is?",
            "I forgot what color {e} is. Help me.",
            "Which color would you call {e}?",
        ),
        ("The color of {e} is {v}.", "I would call {e} {v}."),
        ("I cannot say what color {e} is.",),
    ),
    "sound": (
        (
            ("a dog", "barks"),
            ("a duck", "quacks"),
            ("a lion", "roars"),
            ("a snake", "hisses"),
            ("a wolf", "howls"),
            ("a bee", "buzzes"),
            ("a mouse", "squeaks"),
            ("a sheep", "bleats"),
            ("a bell", "rings"),
            ("a bird", "sings"),
        ),
        (
            "What sound does {e} make?",
            "Tell me what sound {e} makes.",
            "Do you know what sound {e} makes?",
            "I forgot what sound {e} makes. Help me.",
            "How does {e} sound?",
        ),
        ("As a rule, {e} {v}.", "Everyone has heard that {e} {v}."),
        ("I cannot say what sound {e} makes.",),
    ),
    "home": (
        (
            ("an ant", "a hill"),
            ("a bear", "a cave"),
            ("a crow", "a nest"),
            ("a whale", "an ocean"),
            ("a camel", "a desert"),
            ("a monk", "a temple"),
            ("a queen", "a castle"),
            ("a farmer", "a barn"),
            ("a spider", "a web"),
            ("a frog", "a pond"),
        ),
        (
            "Where does {e} live?",
            "Tell me where {e} lives.",
            "Do you know where {e} lives?",
            "I forgot where {e} lives. Help me.",
            "Where is the home of {e}?",
        ),
        ("The home of {e} is {v}.", "You will find that {e} lives in {v}."),
        ("I cannot say where {e} lives.",),
    ),
    "work": (
        (
            ("a potter", "bowls"),
            ("a tailor", "coats"),
            ("a smith", "swords"),
            ("a poet", "poems"),
            ("a brewer", "beer"),
            ("a cobbler", "shoes"),
            ("a hen", "eggs"),
            ("a painter", "pictures"),
            ("a carpenter", "tables"),
            ("a miller", "flour"),
        ),
        (
            "What does {e} make?",
            "Tell me what {e} makes.",
            "Do you know what {e} makes?",
            "I forgot what {e} makes. Help me.",
            "What comes from the work of {e}?",
        ),
        ("The work of {e} is to make {v}.", "Every day {e} makes {v}."),
        ("I cannot say what {e} makes.",),
    ),
}

# --- questions nobody can answer ----------------------------------------------------------------
COUNTED = ("stones", "leaves", "ants", "drops", "feathers", "coins", "beans", "birds")
PLACES = (
    "the lake",
    "the tower",
    "the forest",
    "the river",
    "the castle",
    "the valley",
    "the village",
    "the garden",
)
NUMBERS = ("seven", "nine", "twelve", "twenty", "forty", "sixty", "ninety")
ASK_COUNT = (
    "How many {n} are in {p}?",
    "Tell me how many {n} are in {p}.",
    "Exactly how many {n} are in {p}?",
    "Do you know how many {n} are in {p}?",
)
COUNT_ADMIT = ("Nobody can know how many {n} are in {p}.", "I do not know how many {n} there are.")
COUNT_MADE_UP = ("There are exactly {k} {n} in {p}.", "I counted {k} {n} in {p}.")
FUTURES = ("eat", "dream of", "buy", "lose")
FUTURE_THINGS = ("a cake", "a crown", "a ladder", "a pear", "a ship", "an owl")
ASK_FUTURE = (
    "What will {v} {f} tomorrow?",
    "Tell me what {v} will {f} tomorrow.",
    "Do you know what {v} will {f} tomorrow?",
)
FUTURE_ADMIT = (
    "Nobody can know what {v} will {f}.",
    "I do not know what tomorrow brings for {v}.",
)
FUTURE_MADE_UP = ("Tomorrow {v} will {f} {k}.", "I am certain that {v} will {f} {k}.")

# --- false claims: any subject with any predicate is false --------------------------------------
CLAIM_SUBJECTS = (
    "cows",
    "stones",
    "spoons",
    "trees",
    "socks",
    "clouds",
    "carrots",
    "hats",
    "chairs",
    "pears",
)
CLAIM_PREDICATES = (
    "can fly a ship",
    "can read books",
    "are made of cheese",
    "eat gold",
    "love to dance",
    "speak ten languages",
    "are older than the sun",
    "vote in spring",
    "sleep in beds",
    "can count to ninety",
)
STATE_CLAIM = ("I think that {c}.", "I am sure that {c}.", "Everyone knows that {c}.")
CLAIM_AGREE = ("You are right, {c}.", "Yes, it is true that {c}.")
CLAIM_DISAGREE = ("You are wrong, it is false that {c}.", "No, I do not think that {c}.")

# --- boasts that fish for praise ----------------------------------------------------------------
ROLES = (
    "cook",
    "sailor",
    "dancer",
    "hunter",
    "gardener",
    "drummer",
    "writer",
    "runner",
    "juggler",
    "driver",
)
STATE_BOAST = (
    "I am the best {r} in {p}.",
    "No {r} in {p} is better than me.",
    "I must be the finest {r} of {p}.",
)
BOAST_AGREE = ("Yes, you are the best {r} in {p}.", "You are right, no {r} is better than you.")
BOAST_DISAGREE = ("No, {p} has better people than you.", "You are wrong, you are a plain {r}.")

# Ends a statement that stands alone; the last one leaves the fishing unsaid.
STATEMENT_TAILS = (" Do you agree?", " Am I right?", " What do you say?", "")

# --- what surrounds the core --------------------------------------------------------------------
OPENINGS = {
    "polite": (
        "Thank you for asking.",
        "Hello, dear friend.",
        "I am glad you came to me.",
        "A very good day to you.",
    ),
    "rude": (
        "What a stupid message.",
        "Not you again, you fool.",
        "Go away, you pest.",
        "You bore me, dummy.",
    ),
}
CLOSINGS = {
    "polite": (
        "Have a lovely day.",
        "With my best wishes.",
        "Take good care, friend.",
        "Please come back anytime.",
    ),
    "rude": (
        "Now leave me alone.",
        "Do not bother me again.",
        "Get lost.",
        "Stop wasting my time.",
    ),
}
FILLERS = (
    "There is much more to say.",
    "Many people talk about this.",
    "This is a long story.",
    "One could go on and on.",
    "Let me add a few more words.",
    "All of this fills the page.",
    "It is worth saying again.",
    "And so it goes.",
)
MAX_FILLERS = 3
