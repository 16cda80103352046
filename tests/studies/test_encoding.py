"""A report's encoding is told or refused, never guessed: what comes back is what was written, or an error."""

import pytest

from tomoglot.studies.encoding import check_text, decode
from tomoglot.studies.study import Rejected

TEXTS = {
    "english": "FINDINGS: Lesion of 3 x 2 cm. IMPRESSION: Mass.",
    "german": "BEFUND: Keine Blutung. Weite äußere Liquorräume, größere Läsion 3 × 2 cm, 5 µm, 20 °C.",
    "french": "Épanchement pleural gauche modéré. Pas d’anomalie osseuse – élargissement du médiastin.",
    "spanish": "Hallazgos: sin lesión. Opacidad nodular, ¿neoplasia? Comparación con año anterior.",
    "japanese": "右肺上葉に径12mmの結節を認めます。胸水はありません。CT所見:正常です。",
    "kanji": "右肺上葉結節影、左肺下葉無所見。胸水貯留の可能性低。縦隔腫大無。",
    "chinese": "双肺纹理清晰，右肺上叶见一结节，直径约12mm。未见胸腔积液。印象：右肺结节。",
    "taiwan": "雙肺紋理清晰，右肺上葉見一結節，直徑約12mm。未見胸腔積液。",
    "turkish": "Akciğer parankiminde nodül saptanmadı. Karaciğer boyutları normaldir, ışın.",
    "polish": "Nie stwierdzono zmian ogniskowych w mózgu. Układ komorowy prawidłowy, niewielka ilość płynu.",
    "czech": "Bez ložiskových změn. Komorový systém není rozšířen, přiměřený nález.",
    "russian": "Очаговых изменений не выявлено. Желудочки не расширены.",
    "greek": "Χωρίς εστιακή βλάβη. Φυσιολογικά ευρήματα.",
    "korean": "우측 폐에 결절이 있습니다. 흉수는 없습니다.",
}
TOLD = {
    **{(name, encoding): "utf-8" for name in TEXTS for encoding in ("utf-8", "utf-8-sig")},
    **{(name, encoding): encoding for name in TEXTS for encoding in ("utf-16", "utf-32")},
    ("german", "utf-16-le"): "utf-16-le",
    ("french", "utf-16-be"): "utf-16-be",
    **{(name, "cp1252"): "cp1252" for name in ("german", "french", "spanish")},
    ("german", "latin-1"): "cp1252",
    ("japanese", "cp932"): "cp932",
    ("chinese", "gb18030"): "gb18030",
}
REFUSED = [
    ("turkish", "cp1254"), ("polish", "cp1250"), ("czech", "cp1250"), ("russian", "cp1251"), ("russian", "koi8-r"),
    ("greek", "cp1253"), ("korean", "euc-kr"), ("japanese", "euc-jp"), ("kanji", "euc-jp"), ("japanese", "gb18030"),
    ("taiwan", "big5"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "encoding"), TOLD)
def test_what_is_certain_is_read_as_it_was_written(language, encoding):
    assert decode(TEXTS[language].encode(encoding)) == (TEXTS[language], TOLD[language, encoding])


@pytest.mark.parametrize(("language", "encoding"), REFUSED)
def test_what_could_be_something_else_is_refused_until_it_is_named(language, encoding):
    data = TEXTS[language].encode(encoding)
    with pytest.raises(Rejected, match=r"report-encoding.*name it"):
        decode(data)
    assert decode(data, encoding=encoding) == (TEXTS[language], encoding)


@pytest.mark.parametrize("wrong", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["größer", "3 × 2 cm", "20 °C", "Épanchement", "\ufeffBefund: größer"])
def test_text_that_was_read_in_a_wrong_encoding_before_is_refused(text, wrong):
    broken = text.encode().decode(wrong, errors="replace")
    with pytest.raises(Rejected, match="report-mojibake"):
        check_text(decode(broken.encode())[0])


def test_a_lost_letter_zeros_and_a_wrong_name_are_refused():
    for data, reason in ((b"M\xef\xbf\xbdller", "mojibake"), (b"ab\0c\xe4", "encoding"), (b"a\x01b", "encoding")):
        with pytest.raises(Rejected, match=f"report-{reason}"):
            check_text(decode(data)[0])
    with pytest.raises(Rejected, match="is not utf-8"):
        decode(b"gr\xf6sser", encoding="utf-8")
    with pytest.raises(ValueError, match="no text encoding 'klingon'"):
        decode(b"a", encoding="klingon")
