"""Vocabulary of the simulator: twelve topics and the sentences their items are told in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """What items of a topic are about (`subjects`) and what is said about it (`details`)."""

    name: str
    subjects: tuple[str, ...]
    details: tuple[str, ...]


FORMS = (
    "a beginner's guide",
    "a short film",
    "an evening course",
    "a photo essay",
    "an illustrated handbook",
    "a podcast",
    "a collection of essays",
    "a practical workshop",
)
"""What kind of thing an item is; says nothing about its topic."""

TOPICS = (
    Topic(
        "cooking",
        (
            "Sourdough bread",
            "Handmade pasta",
            "Indian curries",
            "Roasting vegetables",
            "French pastry",
            "Soups and stews",
            "Grilling fish",
            "Fermented pickles",
        ),
        (
            "Which flour, yeast and oven heat give a crisp crust",
            "How a chef seasons with salt, garlic, herbs and lemon",
            "Sauces from butter, onions and a splash of wine",
            "A kitchen menu of recipes for a family dinner",
            "Knives, pans and slow simmering at the stove",
        ),
    ),
    Topic(
        "astronomy",
        (
            "The moons of Jupiter",
            "Black holes",
            "Building a telescope",
            "Comets and meteors",
            "The Milky Way",
            "Exploding stars",
            "Rovers on Mars",
            "Distant galaxies",
        ),
        (
            "What light tells us about planets and their orbits",
            "Observing the night sky far from city lamps",
            "How gravity bends space around a massive star",
            "Images from a space probe beyond Saturn",
            "Nebulae in which new suns are born",
        ),
    ),
    Topic(
        "gardening",
        (
            "Growing tomatoes",
            "Rose beds",
            "Composting",
            "Pruning fruit trees",
            "Balcony herbs",
            "Wildflower meadows",
            "Winter greenhouses",
            "Raising seedlings",
        ),
        (
            "Soil, mulch and watering through a dry summer",
            "When to sow, plant out and harvest",
            "Keeping slugs and aphids off young leaves",
            "Shrubs and perennials for a shady border",
            "Grafting and cuttings for more blossoms",
        ),
    ),
    Topic(
        "football",
        (
            "The penalty shoot-out",
            "Midfield tactics",
            "Great goalkeepers",
            "Derby days",
            "World Cup finals",
            "Training young strikers",
            "The offside trap",
            "Legendary coaches",
        ),
        (
            "How a team presses and wins back the ball",
            "Goals, saves and red cards from the league season",
            "Passing drills for players on a muddy pitch",
            "What fans sang in the stadium after the match",
            "The defender's duel with a fast winger",
        ),
    ),
    Topic(
        "jazz",
        (
            "Saxophone solos",
            "Bebop piano",
            "Big band swing",
            "New Orleans brass",
            "The art of improvising",
            "Double bass grooves",
            "Blues singers",
            "Brushes on drums",
        ),
        (
            "Chords, scales and syncopated rhythm by ear",
            "Records from smoky clubs of the nineteen fifties",
            "How a trio listens and answers in a jam session",
            "Trumpet phrases over a walking bass line",
            "Melodies and harmony that musicians still play",
        ),
    ),
    Topic(
        "programming",
        (
            "Python generators",
            "Compilers from scratch",
            "Database indexes",
            "Functional code",
            "Debugging in production",
            "Sorting algorithms",
            "Web servers",
            "Unit tests",
        ),
        (
            "Reading a stack trace and finding the bug",
            "How source code becomes machine instructions",
            "Data structures, loops and recursion explained",
            "Refactoring old software without breaking the build",
            "Threads, queues and caches under heavy load",
        ),
    ),
    Topic(
        "sailing",
        (
            "Crossing the Atlantic",
            "Knots and ropes",
            "Racing dinghies",
            "Reading the wind",
            "Wooden boats",
            "Anchoring in bays",
            "Charts and compass",
            "Storms at sea",
        ),
        (
            "Trimming the mainsail and jib in a stiff breeze",
            "Life on board a yacht with a crew of four",
            "Tides, harbours and lighthouses along the coast",
            "Keeping a hull and rudder fit for the ocean",
            "How a skipper steers by stars and waves",
        ),
    ),
    Topic(
        "medieval history",
        (
            "Knights and tournaments",
            "Life in a monastery",
            "Castles under siege",
            "The Vikings",
            "The Black Death",
            "Cathedral builders",
            "Feudal kings",
            "The Crusades",
        ),
        (
            "Manuscripts copied by monks in the twelfth century",
            "How peasants paid rent to their lord",
            "Swords, armour and the fall of a fortress",
            "A queen's marriage that joined two kingdoms",
            "Guilds, markets and plague in walled towns",
        ),
    ),
    Topic(
        "personal finance",
        (
            "Index funds",
            "Household budgets",
            "Retirement savings",
            "Paying off debt",
            "Buying a first home",
            "Tax returns",
            "Dividend shares",
            "Insurance basics",
        ),
        (
            "How compound interest makes money grow",
            "Choosing between bonds, stocks and a bank account",
            "Mortgage rates and what a loan really costs",
            "An emergency fund before any investment",
            "Fees, inflation and the value of a pension",
        ),
    ),
    Topic(
        "birds",
        (
            "Owls at night",
            "Migrating storks",
            "Garden songbirds",
            "Eagles and falcons",
            "Penguin colonies",
            "Hummingbird flight",
            "Nests and eggs",
            "Clever crows",
        ),
        (
            "Telling species apart by feathers and song",
            "With binoculars in the marsh at dawn",
            "How chicks hatch, are fed and learn to fly",
            "Wings and beaks shaped by what they eat",
            "Ringing wild flocks on their way south",
        ),
    ),
    Topic(
        "film making",
        (
            "Silent movies",
            "Lighting a scene",
            "Directing actors",
            "Documentary cameras",
            "Film noir",
            "Editing rhythm",
            "Animation by hand",
            "Writing screenplays",
        ),
        (
            "Why a director cuts from close-up to wide shot",
            "Lenses, microphones and tripods on a small set",
            "From storyboard to premiere at the cinema",
            "How Hollywood studios worked in black and white",
            "Dialogue and plot twists that hold an audience",
        ),
    ),
    Topic(
        "mountaineering",
        (
            "Climbing Everest",
            "Ice axes and crampons",
            "Rock climbing",
            "Alpine huts",
            "Avalanche safety",
            "High altitude",
            "Ridge walks",
            "Glacier crossings",
        ),
        (
            "Ropes, carabiners and belaying on a steep wall",
            "A summit push from the last camp before sunrise",
            "How thin air tires the lungs above the snow line",
            "Planning a trek over passes and moraines",
            "Weather signs every climber should know",
        ),
    ),
)


def series_title(topic: Topic, series: int) -> str:
    """Title of the i-th series of a topic: subject first, then form; different for every i."""
    subject = topic.subjects[series % len(topic.subjects)]
    form_index, volume = series // len(topic.subjects), 1
    volume += form_index // len(FORMS)
    # Series with the same form are spread over the topics' subjects, not lined up with them.
    form = FORMS[(form_index + series) % len(FORMS)]
    return f"{subject}: {form}" + (f", volume {volume}" if volume > 1 else "")


def part_title(title: str, part: int) -> str:
    """Title of one part of a series; the first part is 0."""
    return f"{title}, part {part + 1}"


def part_text(topic: Topic, title: str, part: int, num_sentences: int = 1) -> str:
    """What BERT reads of one part: its title and what it says, in another order for each part."""
    first = part + len(title)
    details = (topic.details[(first + i) % len(topic.details)] for i in range(num_sentences))
    return ". ".join((part_title(title, part), *details)) + "."
