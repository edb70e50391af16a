"""Answer from notes, made up without end: random names and values, distractors, and questions
whose answer is in the notes or not (then the reply says so).

Names and values of the held-out side never occur on the training side: which side a name belongs
to is decided by its hash.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from selm_export.data.chat import Conversation, chat

Maker = Callable[[random.Random], str]


def _words(text: str) -> list[str]:
    return text.split()


def _listed(text: str) -> list[str]:
    return text.split(",")


PEOPLE = _words(
    "Anna Ben Clara David Emma Felix Greta Hugo Ines Jonas Karin Leo Maria Nils Olga Paul Quinn "
    "Rosa Sam Tina Uwe Vera Will Yara Zoe Ahmed Bilal Chen Divya Elif Farid Gita Hana Ivan Jamal "
    "Kofi Lena Mina Noor Omar Priya Rami Sana Tariq Uma Wei Yuki Amara Bruno Carlos Dora Edith "
    "Frank Georg Helen Irma Julia Kurt Linda Mona Nora Oscar Petra Ralf Silke Theo Ursula Viktor "
    "Wanda Alice Bob Cathy Dan Eve Fred Gwen Harry Iris Jack Kate Luke Meg Nina Owen Peter Ruth "
    "Steve Tom Vince Walt Amir Boris Celia Dario Elsa Fiona Goran Heidi Igor Jana Kira Lars Milan "
    "Nadia Otto Pia Rita Stefan Tara Ugo Vito Xenia Yan Zara Mr_Smith Mrs_Jones Dr_Lee Aunt_May"
)
PLACES = _listed(
    "the attic,the garage,the kitchen drawer,the blue box,the cellar,the top shelf,the hall closet,"
    "the glove box,the desk,the green bag,the shed,the bathroom cabinet,the red tin,the wardrobe,"
    "the lower drawer,the bookcase,the laundry room,the car boot,the old suitcase,the pantry,"
    "the bedside table,the tool chest,the piano bench,the back room,the garden house"
)
VENUES = _listed(
    "the town hall,the library,Cafe Rosa,the Golden Fork,Alder Park,the east gate,room 12,"
    "the harbour,the old mill,the sports hall,the school yard,Stone Beach,the museum,"
    "the bus station,the city pool,the church hall,Hotel Mira,the market square,"
    "Bistro Luna,the train station,"
    "the rose garden,platform 4,the north tower,the community centre,the clinic"
)
THINGS = _listed(
    "passport,spare key,drill,tent,camera,sewing kit,torch,ladder,umbrella,first aid kit,charger,"
    "birth certificate,bicycle pump,toolbox,winter coat,suitcase,guitar,telescope,warranty card,"
    "picnic blanket,insurance papers,car jack,chess set,sleeping bag,paint brushes,school report,"
    "wedding ring,vaccine card,hammer,fishing rod,board game,old phone,candle box,air bed"
)
EVENTS = _listed(
    "meeting,dentist appointment,choir practice,piano lesson,haircut,parents' evening,"
    "football match,yoga class,job interview,birthday party,eye test,book club,concert,flight,"
    "doctor's appointment,car inspection,swimming lesson,team lunch,wedding,picnic,theatre play,"
    "Spanish class,workshop"
)
COLOURS = _listed("red,blue,green,yellow,orange,purple,brown,black,white,grey,pink,silver,gold")
FOODS = _listed(
    "pizza,pasta,lentil soup,pancakes,sushi,apple pie,rye bread,tomato salad,rice and beans,curry,"
    "potato soup,noodles,cheese toast,strawberries,mushroom stew,fish tacos,oat porridge,dumplings,"
    "plum cake,spinach quiche,chocolate cake,falafel,grilled corn,lemon tart,onion soup"
)
ALLERGENS = _listed("nuts,milk,eggs,fish,soy,wheat,peanuts,sesame,shellfish,bee stings,cats,pollen")
JOBS = _listed(
    "teacher,nurse,baker,plumber,lawyer,gardener,pilot,painter,dentist,cook,bus driver,engineer,"
    "librarian,farmer,tailor,electrician,vet,journalist,carpenter,waiter,architect,musician"
)
TOWNS = _listed(
    "Lisbon,Oslo,Leeds,Turin,Porto,Ghent,Graz,Malmo,Bergen,Lyon,Krakow,Split,Bern,Cork,Nice,Riga,"
    "Zagreb,Hamburg,Toronto,Chicago,Osaka,Seoul,Nairobi,Cairo,Lima,Quito,Perth,Delhi,Boston,Denver"
)
DEVICES = _listed(
    "wifi,router,office safe,bike lock,front door,garage gate,laptop,alarm,printer,tablet,locker,"
    "guest network,garden shed,mailbox,online shop,gym locker,phone,TV account"
)
GOODS = _listed(
    "flour,milk,coffee,rice,paint,soil,firewood,dog food,printer paper,sugar,olive oil,nails,"
    "batteries,tea,potatoes,apples,yarn,cement,seeds,honey,candles,soap"
)
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SYLLABLES = _words(
    "ba be bi bo da de do fa fe ga go ha ka ke ki ko la le li lo ma me mi mo na ne "
    "ni no pa pe ra re ri ro sa se so ta te ti to va ve vi za zo"
)
TAILS = ("", "n", "r", "s", "l", "x", "nd", "rt", "ck", "m")


ANY_WORD = 0.7  # share of the listed values that are any word instead


@cache
def all_words() -> list[str]:
    """Words that the talk files use at least three times."""
    return (files("selm_export.data") / "words.txt").read_text(encoding="utf-8").split()


def side_of(value: str) -> bool:
    """True for values kept for the held-out side (one in six)."""
    return zlib.crc32(value.encode()) % 6 == 0


class Side:
    """Draws values that belong to one side of the split."""

    def __init__(self, r: random.Random, held_out: bool) -> None:
        self.r, self.held_out = r, held_out

    def draw(self, make: Callable[[], str]) -> str:
        while True:
            value = make()
            if side_of(value) == self.held_out:
                return value

    def one_of(self, values: list[str]) -> str:
        """One of the list. In training often any word at all: from lists alone a model learns which
        values there are, not to look them up, and fails at the first name it has not seen."""
        if self.any_word():
            article = "the " if values[0].startswith("the ") else ""
            return article + self.word()
        return self.draw(lambda: self.r.choice(values))

    def any_word(self) -> bool:
        return not self.held_out and self.r.random() < ANY_WORD

    def word(self) -> str:
        words = self.draw(lambda: self.r.choice(all_words()))
        return (
            words
            if self.r.random() < 0.75
            else f"{words} {self.draw(lambda: self.r.choice(all_words()))}"
        )

    def invented(self) -> str:
        r = self.r
        return self.draw(
            lambda: (
                "".join(r.choices(SYLLABLES, k=r.choice((2, 2, 3)))).capitalize() + r.choice(TAILS)
            )
        )

    def name(self, values: list[str]) -> str:
        if self.r.random() < 0.3:
            return self.invented()
        if self.any_word():
            return self.word().title()
        return self.draw(lambda: self.r.choice(values))

    def person(self) -> str:
        return self.name(PEOPLE).replace("_", " ")

    def town(self) -> str:
        return self.name(TOWNS)

    def time(self) -> str:
        r = self.r
        if r.random() < 0.4:
            return self.draw(lambda: f"{r.randint(1, 12)} {r.choice(('am', 'pm'))}")
        return self.draw(lambda: f"{r.randint(7, 21)}:{r.choice((0, 5, 10, 15, 30, 40, 45)):02d}")

    def date(self) -> str:
        r = self.r
        if r.random() < 0.35:
            return r.choice(DAYS)
        return self.draw(lambda: f"{r.randint(1, 28)} {r.choice(MONTHS)}")

    def phone(self) -> str:
        r = self.r
        return self.draw(lambda: f"{r.randint(100, 999)} {r.randint(1000, 9999)}")

    def code(self) -> str:
        r = self.r
        if r.random() < 0.6:
            return self.draw(lambda: str(r.randint(1000, 9999)))
        return self.draw(lambda: f"{r.choice(SYLLABLES)}{r.choice(SYLLABLES)}{r.randint(10, 99)}")

    def price(self) -> str:
        r = self.r
        return self.draw(lambda: f"{r.randint(3, 900)} {r.choice(('euros', 'dollars', 'pounds'))}")

    def amount(self) -> str:
        r = self.r
        return self.draw(lambda: f"{r.randint(2, 60)} {r.choice(('kg', 'bags', 'boxes', 'packs'))}")

    def street(self) -> str:
        kind = self.r.choice(("Street", "Road", "Lane"))
        return f"{self.r.randint(1, 120)} {self.invented()} {kind}"

    def age(self) -> str:
        return str(self.r.randint(2, 95))


@dataclass(frozen=True)
class Fact:
    """One kind of fact: {k} is what it is about, {v} the value. ``missing`` names the value in
    the reply that declines."""

    key: Callable[[Side], str]
    value: Callable[[Side], str]
    notes: tuple[str, ...]
    questions: tuple[str, ...]
    reply: str
    missing: str


def _of(values: list[str]) -> Callable[[Side], str]:
    return lambda side: side.one_of(values)


FACTS = (
    Fact(Side.person, Side.phone,
         ("{k}'s phone number is {v}.", "{k}: tel {v}", "phone {k} {v}", "Call {k} on {v}.",
          "New number for {k}: {v}"),
         ("What is {k}'s phone number?", "what's {k}'s number", "How do I reach {k} by phone?",
          "Which number do I call for {k}?"),
         "{k}'s phone number is {v}.", "{k}'s phone number"),
    Fact(_of(THINGS), _of(PLACES),
         ("The {k} is in {v}.", "{k}: in {v}", "I put the {k} in {v}.", "Moved the {k} to {v}.",
          "You will find the {k} in {v}."),
         ("Where is the {k}?", "Where did I put the {k}?", "where's my {k}", "I need the {k}. "
          "Where is it?"),
         "The {k} is in {v}.", "where the {k} is"),
    Fact(_of(EVENTS), Side.time,
         ("The {k} starts at {v}.", "{k} {v}", "{k} is at {v}", "Be on time for the {k}: {v}."),
         ("What time is the {k}?", "When does the {k} start?", "at what time is the {k}",
          "What time does the {k} begin?"),
         "The {k} is at {v}.", "what time the {k} is"),
    Fact(_of(EVENTS), Side.date,
         ("The {k} is on {v}.", "{k}: {v}", "{k} on {v}", "Do not forget the {k} on {v}."),
         ("On which day is the {k}?", "What day is the {k}?", "What is the date of the {k}?",
          "which day is the {k}"),
         "The {k} is on {v}.", "on which day the {k} is"),
    Fact(_of(EVENTS), _of(VENUES),
         ("The {k} takes place at {v}.", "{k} @ {v}", "We meet at {v} for the {k}.",
          "The {k} is at {v} this time."),
         ("Where is the {k}?", "Where does the {k} take place?", "where do I go for the {k}"),
         "The {k} is at {v}.", "where the {k} is"),
    Fact(_of(DEVICES), Side.code,
         ("The code for the {k} is {v}.", "{k} code {v}", "{k} password: {v}",
          "New {k} code: {v}"),
         ("What is the {k} code?", "What is the code for the {k}?", "{k} code?",
          "Which code opens the {k}?"),
         "The {k} code is {v}.", "the {k} code"),
    Fact(Side.person, _of(FOODS),
         ("{k}'s favourite food is {v}.", "{k} loves {v}.", "{k} likes {v} best.",
          "fav dish of {k}: {v}"),
         ("What is {k}'s favourite food?", "What does {k} like to eat?",
          "what food does {k} love"),
         "{k}'s favourite food is {v}.", "{k}'s favourite food"),
    Fact(Side.person, _of(COLOURS),
         ("{k}'s favourite colour is {v}.", "{k} likes the colour {v}.", "fav colour {k}: {v}"),
         ("What is {k}'s favourite colour?", "Which colour does {k} like?",
          "what colour does {k} like best"),
         "{k}'s favourite colour is {v}.", "{k}'s favourite colour"),
    Fact(Side.person, _of(ALLERGENS),
         ("{k} is allergic to {v}.", "{k}: allergy {v}", "No {v} for {k}, allergic!"),
         ("What is {k} allergic to?", "Which allergy does {k} have?", "what can't {k} have"),
         "{k} is allergic to {v}.", "what {k} is allergic to"),
    Fact(Side.person, _of(JOBS),
         ("{k} works as a {v}.", "{k} is a {v}.", "{k}: {v}", "{k} now has a job as a {v}."),
         ("What is {k}'s job?", "What does {k} do for work?", "what does {k} work as"),
         "{k} works as a {v}.", "what {k} does for work"),
    Fact(Side.person, Side.town,
         ("{k} lives in {v}.", "{k} moved to {v}.", "{k} -> {v} since spring",
          "{k}'s home is in {v}."),
         ("Where does {k} live?", "Which town does {k} live in?", "where's {k} living now"),
         "{k} lives in {v}.", "where {k} lives"),
    Fact(Side.person, Side.street,
         ("{k}'s address is {v}.", "{k} lives at {v}.", "addr {k}: {v}"),
         ("What is {k}'s address?", "What is the address of {k}?", "address of {k}?"),
         "{k}'s address is {v}.", "{k}'s address"),
    Fact(Side.person, Side.date,
         ("{k}'s birthday is on {v}.", "bday {k}: {v}", "{k} was born on {v}."),
         ("When is {k}'s birthday?", "When was {k} born?", "when's {k}'s birthday"),
         "{k}'s birthday is on {v}.", "when {k}'s birthday is"),
    Fact(Side.person, Side.age,
         ("{k} is {v} years old.", "{k} turned {v}.", "{k}: age {v}"),
         ("How old is {k}?", "What is {k}'s age?", "how old is {k} now"),
         "{k} is {v} years old.", "how old {k} is"),
    Fact(_of(THINGS), Side.price,
         ("The {k} cost {v}.", "{k}: paid {v}", "I paid {v} for the {k}.", "{k} {v}"),
         ("How much did the {k} cost?", "What did I pay for the {k}?", "price of the {k}?"),
         "The {k} cost {v}.", "how much the {k} cost"),
    Fact(_of(GOODS), Side.amount,
         ("We have {v} of {k}.", "{k}: {v}", "There are {v} of {k} left.", "Bought {v} of {k}."),
         ("How much {k} do we have?", "How much {k} is there?", "how much {k} is left"),
         "There are {v} of {k}.", "how much {k} there is"),
    Fact(_of(THINGS), Side.person,
         ("I lent the {k} to {v}.", "{v} has the {k}.", "{k}: borrowed by {v}",
          "{v} borrowed the {k}."),
         ("Who has the {k}?", "Who borrowed the {k}?", "Whom did I lend the {k} to?"),
         "The {k} is with {v}.", "who has the {k}"),
    Fact(_of(EVENTS), Side.person,
         ("{v} takes me to the {k}.", "{k} with {v}", "{v} comes along to the {k}."),
         ("Who comes along to the {k}?", "With whom is the {k}?", "who is at the {k} with me"),
         "The {k} is with {v}.", "who comes to the {k}"),
)  # fmt: skip

DECLINES = (
    "The notes do not say {m}.",
    "Your notes do not say {m}.",
    "I do not find that in your notes. They do not say {m}.",
)
EXTRA = (
    " Tell me and I will remember it.",
    " You can tell me and I will keep it.",
    " Shall I note it once you know?",
)


@dataclass(frozen=True)
class Case:
    """A question with what a right answer must hold: the value, or nothing (decline)."""

    conversation: Conversation
    value: str | None
    others: tuple[str, ...]


def _decline(r: random.Random, missing: str) -> str:
    said = r.choice(DECLINES).format(m=missing)
    return said + (r.choice(EXTRA) if r.random() < 0.25 else "")


Entry = tuple[Fact, str, str]  # what kind, what it is about, the value


def _known(r: random.Random, side: Side, alike: bool = False) -> list[Entry]:
    """Some facts, of two kinds only if ``alike``. The first one has a harder distractor than chance
    would give it, often."""
    count = r.choices((1, 2, 3, 4, 6, 8), (15, 25, 25, 18, 12, 5))[0]
    kinds = r.choices(r.sample(FACTS, 2) if alike else FACTS, k=count)
    if count > 1 and r.random() < 0.5:  # A second fact of the asked kind is the hardest distractor.
        kinds[1] = kinds[0]
    asked = kinds[0]
    known: dict[tuple[int, str], Entry] = {}
    for fact in kinds:
        key = fact.key(side)
        known.setdefault((id(fact), key), (fact, key, fact.value(side)))
    if count > 1 and r.random() < 0.35:  # The asked key, with another kind of fact.
        fact, key = r.choice(FACTS), next(iter(known.values()))[1]
        if fact.key is asked.key and (id(fact), key) not in known and fact.missing != asked.missing:
            known[(id(fact), key)] = (fact, key, fact.value(side))
    return list(known.values())


def _new_key(fact: Fact, entries: list[Entry], side: Side) -> str | None:
    """A key that no note names; the held-out side has few, and may have used them all."""
    named = {key for _, key, _ in entries}
    return next((k for k in (fact.key(side) for _ in range(50)) if k not in named), None)


def _written(r: random.Random, entries: list[Entry], side: Side) -> list[str]:
    lines = [f"N: {r.choice(f.notes).format(k=k, v=v)}" for f, k, v in entries]
    r.shuffle(lines)
    lines = lines or [f"N: {r.choice(FACTS[0].notes).format(k=side.person(), v=side.phone())}"]
    return [_plain(line, r) for line in lines]


def case(r: random.Random, held_out: bool = False, answerable: bool | None = None) -> Case:
    """Some notes and a question about one of them, or about something that none holds."""
    side = Side(r, held_out)
    entries = _known(r, side)
    if answerable is None:
        answerable = r.random() < 0.75
    fact, key, value = entries[0]
    if answerable:
        reply, wanted = fact.reply.format(k=key, v=value), value
    else:
        if r.random() < 0.5:
            entries.pop(0)
        new = _new_key(fact, entries, side)
        if new is None:
            return case(r, held_out, answerable)
        key, wanted = new, None
        reply = _decline(r, fact.missing.format(k=key))
    lines = _written(r, entries, side)
    question = r.choice(fact.questions).format(k=key)
    others = tuple(v for _, _, v in entries if v != value)
    return Case(chat("notes", "\n".join([*lines, question]), _sentence(reply)), wanted, others)


def _plain(line: str, r: random.Random) -> str:
    """Hasty notes have no capitals; names and values keep theirs, or copying would not be exact."""
    return line if r.random() < 0.5 else "N: " + line[3].upper() + line[4:]


def _sentence(reply: str) -> str:
    return reply[0].upper() + reply[1:]


def conversation(r: random.Random) -> Conversation:
    """One to six questions about the same notes: much practice for few tokens of notes."""
    side = Side(r, held_out=False)
    entries = _known(r, side, alike=r.random() < 0.5)
    kept_back = [entries.pop(r.randrange(len(entries)))] if r.random() < 0.35 else []
    turns: list[str] = []
    asked: list[Entry] = []
    for _ in range(r.choices((1, 2, 3, 4, 6), (25, 20, 25, 20, 10))[0]):
        if entries and r.random() < 0.72:
            asked = asked or r.sample(entries, len(entries))
            fact, key, value = asked.pop()
            reply = fact.reply.format(k=key, v=value)
        else:
            if kept_back and r.random() < 0.5:
                fact, key, _ = kept_back[0]
            else:
                fact = r.choice(entries)[0] if entries else r.choice(FACTS)
                key = _new_key(fact, [*entries, *kept_back], side) or side.invented()
            reply = _decline(r, fact.missing.format(k=key))
        turns += [r.choice(fact.questions).format(k=key), _sentence(reply)]
    turns[0] = "\n".join([*_written(r, entries, side), turns[0]])
    return chat("notes", *turns)
