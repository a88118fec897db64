"""LRE: relations of real facts, one file each (Hernandez et al. 2024, "Linearity of Relation Decoding")."""

import json
from collections.abc import Iterator
from pathlib import Path

from semcal.errors import UserError, nearest
from semcal.questions.named.data_folder import in_data_folder
from semcal.questions.question import Question
from semcal.questions.rows import Row, read_text

FOLDER = "lre_relations"
# Relation -> question. The files hold beginnings of sentences instead.
QUESTIONS = {
    "city_in_country": "In which country is the city of {}?",
    "company_ceo": "Who is the chief executive officer of {}?",
    "company_hq": "In which city does {} have its headquarters?",
    "country_capital_city": "What is the capital of {}?",
    "country_currency": "What is the currency of {}?",
    "country_language": "Which language do most people in {} speak?",
    "country_largest_city": "What is the largest city in {}?",
    "food_from_country": "From which country does {} originate?",
    "landmark_in_country": "In which country is {}?",
    "landmark_on_continent": "On which continent is {}?",
    "person_band_lead_singer": "Of which band is {} the lead singer?",
    "person_father": "Who is the father of {}?",
    "person_mother": "Who is the mother of {}?",
    "person_native_language": "What is the native language of {}?",
    "person_occupation": "What is the occupation of {}?",
    "person_plays_instrument": "Which instrument does {} play?",
    "person_plays_position_in_sport": "Which position does {} play?",
    "person_plays_pro_sport": "Which sport does {} play?",
    "person_university": "Which university did {} attend?",
    "pokemon_evolutions": "What does the Pokemon {} evolve into?",
    "presidents_birth_year": "In which year was {} born?",
    "presidents_election_year": "In which year was {} elected?",
    "product_by_company": "Which company developed {}?",
    "star_constellation": "In which constellation is {}?",
    "superhero_archnemesis": "Who is the archnemesis of {}?",
    "superhero_person": "What is the secret identity of {}?",
}


def lre_rows(path: Path | None, relation: str | None) -> Iterator[Row]:
    """A row for each subject of a relation: relation, subject, objects (a subject may have several).

    Args:
        path: The relation's file, named after it; None for `relation` in $SEMCAL_DATA/lre_relations.
        relation: A key of `QUESTIONS`.

    Raises:
        UserError: an unknown relation, no file of it, or a file of another kind.
    """
    name = path.stem if path else relation or ""
    if not name:
        raise UserError(f"lre: set split to one of its relations: {', '.join(QUESTIONS)}")
    if name not in QUESTIONS:
        known = ", ".join(QUESTIONS)
        raise UserError(f"lre: {name!r} is not one of its relations{nearest(name, QUESTIONS)}; expected one of {known}")
    file = path or in_data_folder(f"{FOLDER}/{name}.json")
    if file is None:
        raise UserError(
            f"lre: no file of {name}, and the Hub has none; clone https://github.com/evandez/relations and give the "
            f"path of data/factual/{name}.json, or set SEMCAL_DATA to a folder whose {FOLDER} holds it"
        )
    try:
        samples = json.loads(read_text(file))["samples"]
        pairs = [(str(s["subject"]), str(s["object"])) for s in samples]
    except (json.JSONDecodeError, TypeError, KeyError):
        raise UserError(f"{file} is not a relation of LRE: expected JSON with samples of subject and object") from None
    objects: dict[str, list[str]] = {}
    for subject, answer in pairs:
        objects.setdefault(subject, []).append(answer)
    for number, (subject, answers) in enumerate(objects.items(), start=1):
        values = {"relation": name, "subject": subject, "objects": list(dict.fromkeys(answers))}
        yield Row(values, f"{file}: subject {number}", number)


def lre(row: Row) -> Question:
    """A row of `lre_rows`; further objects of a subject become `others`. Exemplars are of the same relation."""
    relation, (first, *others) = row.text("relation"), row.texts("objects")
    return row.question(
        id=f"lre-{relation}-{row.number:05d}",
        text=QUESTIONS[relation].format(row.text("subject")),
        answers=(first,),
        others=tuple((other,) for other in others),
        worked={"concise": first},
    )
