"""Who speaks: espeak-ng's variants, shared out so that nobody speaks in two places.

The base model hears other voices than the dataset, and training, validation and test have voices of their own: the
test measures what fine-tuning brings for people who were never heard.
"""

import random

from speech import Speaker

TRAIN = (
    Speaker("speaker_01", "m1", 45, 160),
    Speaker("speaker_02", "m3", 35, 172),
    Speaker("speaker_03", "m5", 60, 165),
    Speaker("speaker_04", "m7", 50, 180),
    Speaker("speaker_05", "m8", 40, 155),
    Speaker("speaker_06", "f1", 55, 168),
    Speaker("speaker_07", "f3", 48, 175),
    Speaker("speaker_08", "adam", 42, 162),
    Speaker("speaker_09", "Gene", 58, 170),
    Speaker("speaker_10", "ed", 38, 178),
    Speaker("speaker_11", "linda", 52, 158),
    Speaker("speaker_12", "Andrea", 62, 150),
    Speaker("speaker_13", "grandpa", 46, 164),
    Speaker("speaker_14", "Nguyen", 54, 174),
    Speaker("speaker_15", "Storm", 40, 168),
    Speaker("speaker_16", "klatt2", 50, 160),
)
VALIDATION = (
    Speaker("speaker_17", "m4", 47, 166),
    Speaker("speaker_18", "f5", 53, 172),
    Speaker("speaker_19", "croak", 50, 160),
)
TEST = (
    Speaker("speaker_20", "m2", 44, 170),
    Speaker("speaker_21", "f2", 56, 164),
    Speaker("speaker_22", "m6", 52, 158),
    Speaker("speaker_23", "f4", 46, 176),
)

BASE_VARIANTS = (
    "Alex", "Alicia", "Andy", "Annie", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb",
    "david", "Denis", "Diogo", "edward", "edward2", "grandma", "gustave", "Henrique", "Hugo", "iven", "iven3",
    "Jacky", "john", "Lee", "marcelo", "Mario", "max", "Michael", "michel", "miguel", "Mike", "norbert", "pablo",
    "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph3", "travis", "zac",
)  # fmt: skip
BASE_TEST_VARIANTS = ("victor", "steph2")


def any_speaker(rng: random.Random, variants: tuple[str, ...]) -> Speaker:
    """One of the base model's voices, at any pitch and speed at which speech is still natural."""
    variant = rng.choice(variants)
    return Speaker(variant, variant, pitch=rng.randint(20, 80), speed=rng.randint(135, 195))
