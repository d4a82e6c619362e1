"""Languages: what Whisper calls them, what datasets call them, and which subset of a dataset holds one."""

from __future__ import annotations

import difflib
import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from asr_fine_tuner.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Language(NamedTuple):
    """A language that Whisper has a token for: its code (`it`) and its name (`italian`), as Whisper writes them."""

    code: str
    name: str


# Written without spaces between words: a word error rate says little there and the character error rate leads.
# https://www.w3.org/International/articles/typography/linebreak.en lists the scripts.
UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my", "bo"})

# ISO 639-3 (and, behind the bar, other codes in use) of Whisper's languages; https://iso639-3.sil.org/code_tables.
# `nb` and `fil` are how FLEURS and Common Voice write Whisper's `no` and `tl`, `jv` is ISO's code for Whisper's `jw`.
_OTHER_CODES = """
en eng|zh cmn zho chi|de deu ger|es spa|ru rus|ko kor|fr fra fre|ja jpn|pt por|tr tur|pl pol|ca cat|nl nld dut
ar ara arb|sv swe|it ita|id ind in|hi hin|fi fin|vi vie|he heb iw|uk ukr|el ell gre|ms msa zsm may|cs ces cze
ro ron rum mo|da dan|hu hun|ta tam|no nor nb nob|th tha|ur urd|hr hrv|bg bul|lt lit|la lat|mi mri mao|ml mal
cy cym wel|sk slk slo|te tel|fa fas pes per|lv lav lvs|bn ben|sr srp|az aze azj|sl slv|kn kan|et est ekk
mk mkd mac|br bre|eu eus baq|is isl ice|hy hye arm|ne nep npi|mn mon khk|bs bos|kk kaz|sq sqi als alb|sw swa swh
gl glg|mr mar|pa pan|si sin|km khm|sn sna|yo yor|so som|af afr|oc oci|ka kat geo|be bel|tg tgk|sd snd|gu guj
am amh|yi yid ydd ji|lo lao|uz uzb uzn|fo fao|ht hat|ps pus pbt|tk tuk|nn nno|mt mlt|sa san|lb ltz|my mya bur
bo bod tib|tl tgl fil|mg mlg plt|as asm|tt tat|haw|ln lin|ha hau|ba bak|jw jv jav|su sun sund|yue
"""

# Languages with public speech that Whisper has no token for: codes, name, and the one of Whisper's languages that is
# nearest to it by family and script, as a first choice for fine-tuning.
_MISSING = """
dv div dhivehi: sinhala|fy fry frisian: dutch|ga gle irish: welsh|gd gla gaelic: welsh|ky kir kyrgyz: kazakh
ug uig uyghur: uzbek|ig ibo igbo: yoruba|zu zul zulu: shona|xh xho xhosa: shona|st sot sesotho: shona
tn tsn setswana: shona|nso nso sepedi: shona|ny nya chichewa: shona|rw kin kinyarwanda: swahili
lg lug luganda: swahili|kam kam kamba: swahili|luo luo luo: swahili|om orm oromo: somali
ti tir tigrinya: amharic|wo wol wolof: french|ff ful fula: hausa|ff fuc pulaar: hausa|or ory odia: bengali
ast ast asturian: spanish|an arg aragonese: spanish|kea kea kabuverdianu: portuguese|ceb ceb cebuano: tagalog
ckb ckb sorani: persian|ku kmr kurmanji: persian|eo epo esperanto: italian|ia ina interlingua: italian
sc srd sardinian: italian|lij lij ligurian: italian|rm roh romansh: italian|gn grn guarani: spanish
qu que quechua: spanish|gsw gsw alemannic: german|hsb hsb sorbian: polish|cv chv chuvash: tatar
sah sah sakha: kazakh|ab abk abkhaz: georgian|mhr mhr mari: finnish|myv myv erzya: finnish
os oss ossetian: persian|tw twi twi: yoruba|ee ewe ewe: yoruba|bm bam bambara: french|kab kab kabyle: arabic
zgh zgh tamazight: arabic|umb umb umbundu: lingala|bho bho bhojpuri: hindi|mai mai maithili: hindi
sat sat santali: bengali
"""

_ISO_CODES = {"jw": "jv"}
"""Where Whisper's code is not ISO 639's."""

_LANGUAGE_TAG = re.compile(r"(?P<code>[a-z]{2,3})(-(?P<script>[a-z]{4}))?(-(?P<region>[a-z]{2}|[0-9]{3}))?")


def resolve_language(language_code: str, language: str | None) -> Language:
    """The language token to train with: that of `language` (a name or a code), else that of `language_code`.

    Raises PermanentError for a language that Whisper lacks or that is not known at all.
    """
    given = language if language is not None else language_code
    code = _key(given)
    names = _whisper_names()
    if code in names:
        return Language(code, names[code])
    if language is not None:
        raise PermanentError(
            given=f"--language {language!r}, which is not one of Whisper's languages",
            expected="a language of Whisper, by name or code: " + ", ".join(sorted(names.values())),
            action=_nearest(language, names) or "choose the closest of these languages",
        )
    missing = _missing()
    if code in missing:
        name, closest = missing[code]
        raise PermanentError(
            given=f"--language_code {language_code!r} ({name.capitalize()}), a language Whisper has no token for",
            expected="a language that Whisper knows, whose token the new language then takes over",
            action=f"choose the closest one that Whisper has, for instance --language {closest.capitalize()} "
            "(related, or written alike); --language_code stays what the dataset calls the language",
        )
    raise PermanentError(
        given=f"--language_code {language_code!r}, which names no language known here",
        expected="a language code or name (it, it_it, Italian), or a config name together with --language",
        action=_nearest(language_code, names)
        or "correct the code, or say with --language which language to train as (the closest where Whisper lacks it)",
    )


def match_config(configs: Sequence[str], language_code: str) -> str:
    """The one of a dataset's config names that holds a language.

    An exact name wins; then names that say the same language (`it`: `it_it`, `it-IT`, `italian`, `ita`; `zh`:
    `cmn_hans_cn`), as long as regions do not contradict; then an only config whose name says no language (`default`).
    Raises PermanentError, with the list, when there is none or more than one.
    """
    for same in (str, _tag):
        exact = [config for config in configs if same(config) == same(language_code)]
        if len(exact) == 1:
            return exact[0]
    matching = [config for config in configs if _same_language(config, language_code)]
    if len(matching) == 1:
        return matching[0]
    if not matching and len(configs) == 1 and not names_a_language(configs[0]):
        return configs[0]
    if matching:
        raise PermanentError(
            given=f"--language_code {language_code!r}, which fits several configs: {', '.join(matching)}",
            expected="exactly one config of the dataset",
            action=f"give the config itself, for instance --language_code {matching[0]}",
        )
    nearest = difflib.get_close_matches(language_code, configs, n=3, cutoff=0.5)
    raise PermanentError(
        given=f"--language_code {language_code!r}, which fits no config of the dataset",
        expected=f"one of its {len(configs)} configs: {', '.join(configs)}"
        if len(configs) > 1
        else f"its only config, {configs[0]}, which is what its data is said to be in",
        action=(f"the nearest: {', '.join(nearest)}; " if nearest else "")
        + "give a config name as --language_code (and the language as --language where the name does not say it)",
    )


def whisper_code(name: str) -> str | None:
    """What Whisper calls the language of a dataset's code or config name: `zh` for `cmn_hans_cn`; None where Whisper
    lacks that language, and where the name says none that is known here (`clean`)."""
    code = _key(name)
    return code if code in _whisper_names() else None


def iso_code(name: str) -> str | None:
    """ISO 639's code of the language of a code or config name, which is what the Hub files by: `jv` for `jw`, `ckb`
    for `ckb_iq`; None where the name is not that of a language.

    A language that is not known here keeps the code that it is given by (`ace` of `ace_id`).
    """
    code = _key(name)
    if code in _whisper_names() or code in _missing():
        return _ISO_CODES.get(code, code)
    tag = _LANGUAGE_TAG.fullmatch(_tag(name))
    return tag["code"] if tag else None


def names_a_language(name: str) -> bool:
    """Whether a config or folder name is that of a language: a code, a language tag or a name."""
    return _key(name) in {*_whisper_names(), *_missing()}


def _same_language(config: str, language_code: str) -> bool:
    if not names_a_language(config) or _key(config) != _key(language_code):
        return False
    there, here = _region(config), _region(language_code)
    return there is None or here is None or there == here


def _tag(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.strip().lower())


def _region(name: str) -> str | None:
    tag = _LANGUAGE_TAG.fullmatch(_tag(name))
    return tag["region"] if tag else None


def _key(name: str) -> str:
    """Whisper's code for a name, code or language tag; for a language Whisper lacks its usual code; else the tag."""
    tag = _tag(name)
    parsed = _LANGUAGE_TAG.fullmatch(tag)
    for candidate in (tag, tag.replace("-", " "), parsed["code"] if parsed else tag):
        if candidate in _keys():
            return _keys()[candidate]
    return tag


@functools.cache
def _keys() -> Mapping[str, str]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    keys: dict[str, str] = {}
    for entry in _entries(_OTHER_CODES):
        codes = entry.split()
        keys |= dict.fromkeys(codes, codes[0])
    for entry in _entries(_MISSING):
        names = entry.partition(":")[0].split()
        keys |= dict.fromkeys(names, names[0])
    return keys | {name: code for name, code in TO_LANGUAGE_CODE.items() if name != code}


@functools.cache
def _whisper_names() -> Mapping[str, str]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return dict(LANGUAGES)


@functools.cache
def _missing() -> Mapping[str, tuple[str, str]]:
    """Code -> name of the language and of Whisper's closest one."""
    missing = {}
    for entry in _entries(_MISSING):
        language, closest = entry.split(": ")
        code, *_, name = language.split()
        missing[code] = (name, closest)
    return missing


def _entries(table: str) -> list[str]:
    return table.replace("\n", "|").strip("|").split("|")


def _nearest(given: str, names: Mapping[str, str]) -> str | None:
    nearest = difflib.get_close_matches(given.lower(), [*names.values()], n=3, cutoff=0.6)
    return f"did you mean {' or '.join(name.capitalize() for name in nearest)}?" if nearest else None
