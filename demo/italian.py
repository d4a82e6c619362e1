"""The Italian that the demo's voices read: what may be heard at a public office.

A small grammar draws the sentences, so every one is our own, any number of them can be made, and one seed always gives
the same ones. Numbers are written as words: what is heard and what is written then agree without a normaliser that
knows the language.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Office:
    """A noun phrase and the ending that its adjectives take ("o" or "a")."""

    name: str
    ending: str


OFFICES = (
    Office("l'ufficio anagrafe", "o"),
    Office("l'ufficio tributi", "o"),
    Office("l'ufficio scuola", "o"),
    Office("lo sportello unico", "o"),
    Office("lo sportello sociale", "o"),
    Office("il centro per l'impiego", "o"),
    Office("il protocollo", "o"),
    Office("la biblioteca comunale", "a"),
    Office("la segreteria", "a"),
    Office("la polizia locale", "a"),
    Office("la sala civica", "a"),
)
DOCUMENTS = (
    "la carta d'identità",
    "il passaporto",
    "il certificato di nascita",
    "il certificato di residenza",
    "la tessera sanitaria",
    "il codice fiscale",
    "la patente",
    "il permesso di soggiorno",
    "la dichiarazione dei redditi",
    "il modulo firmato",
    "la marca da bollo",
    "la ricevuta di pagamento",
    "la tessera elettorale",
    "lo stato di famiglia",
    "una fotografia recente",
)
DAYS = ("lunedì", "martedì", "mercoledì", "giovedì", "venerdì", "sabato")
MONTHS = (
    "gennaio", "febbraio", "marzo", "aprile", "maggio", "giugno",
    "luglio", "agosto", "settembre", "ottobre", "novembre", "dicembre",
)  # fmt: skip
DAY_PARTS = ("mattina", "pomeriggio", "sera")
ORDINALS = ("primo", "secondo", "terzo", "quarto")
SERVICES = (
    "cambiare residenza",
    "iscrivere i bambini a scuola",
    "rinnovare il documento",
    "pagare la tassa sui rifiuti",
    "chiedere un contributo",
    "denunciare uno smarrimento",
    "prenotare la sala",
    "aprire un'attività",
)
UNITS = (
    "zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove", "dieci", "undici", "dodici",
    "tredici", "quattordici", "quindici", "sedici", "diciassette", "diciotto", "diciannove",
)  # fmt: skip
TENS = ("venti", "trenta", "quaranta", "cinquanta", "sessanta", "settanta", "ottanta", "novanta")


def italian_number(value: int) -> str:
    """Spells 0 to 99; the tens lose their vowel before "uno" and "otto", and a final "tre" takes an accent."""
    if value < 20:
        return UNITS[value]
    tens, unit = TENS[value // 10 - 2], value % 10
    if unit == 0:
        return tens
    if unit in (1, 8):
        return tens[:-1] + UNITS[unit]
    return tens + ("tré" if unit == 3 else UNITS[unit])


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def italian_sentence(rng: random.Random) -> str:
    """One sentence as it may be heard at a public office, with its casing and punctuation."""
    office = rng.choice(OFFICES)
    document, other_document = rng.sample(DOCUMENTS, 2)
    day, other_day = rng.sample(DAYS, 2)
    part = rng.choice(DAY_PARTS)
    opening, closing = rng.randint(7, 12), rng.randint(13, 20)
    half = rng.choice(("", " e mezza", " e un quarto", " e trenta"))
    number = italian_number(rng.randint(2, 60))
    counter = italian_number(rng.randint(2, 9))
    digits = " ".join(UNITS[rng.randint(0, 9)] for _ in range(4))
    month = rng.choice(MONTHS)
    month_day = italian_number(rng.randint(2, 30))
    service = rng.choice(SERVICES)
    ordinal = rng.choice(ORDINALS)
    hour = italian_number(opening) + half
    sentence = rng.choice(
        (
            f"{office.name} apre alle {hour}.",
            f"{office.name} apre alle {hour} e chiude alle {italian_number(closing)}.",
            f"{office.name} è apert{office.ending} il {day} {part}.",
            f"{office.name} è chius{office.ending} di {day} e di {other_day}.",
            f"{office.name} resta chius{office.ending} fino a {day}.",
            f"{office.name} si trova al {ordinal} piano.",
            f"per {document} serve {other_document}.",
            f"il suo appuntamento è {day} alle {hour}.",
            f"numero {number}, si presenti allo sportello {counter}.",
            f"vorrei un appuntamento per {day} {part}.",
            f"dove posso ritirare {document}?",
            f"quanto costa {document}?",
            f"{document} costa {number} euro.",
            f"porti con sé {document} e {other_document}.",
            f"la domanda scade il {month_day} {month}.",
            f"il pagamento va fatto entro {day} {month_day} {month}.",
            f"chiami il numero {digits}.",
            f"la sua pratica numero {number} è pronta.",
            f"per {service} vada allo sportello {counter}.",
            f"posso {service} di {day} {part}?",
            f"mancano {document} e {other_document}.",
            f"gli uffici riaprono {day} {month_day} {month}.",
            f"ha già presentato {document}?",
            f"per {service} bisogna prenotare.",
        )
    )
    return capitalised(sentence)
