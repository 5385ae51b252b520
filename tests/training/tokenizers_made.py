"""Small tokenizers of the kinds that language models have."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<|head|>", "<|/head|>", "<|end|>", "<|user|>", "<|bot|>")
_MERGES = [("h", "i"), ("h", "o")]
_PIECES = ("▁hi", "▁ho", "hi", "ho", "▁", *"hioabend<|>/s\n.")


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: place for place, entry in enumerate([*SPECIAL, *alphabet, "hi", "ho"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _unigram(prefix: str) -> Tokenizer:
    # As converted from SentencePiece, the special tokens are pieces too.
    pieces = [(entry, -1.0 if len(entry) > 1 else -3.0) for entry in (*SPECIAL, *_PIECES)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    return made


def _prepending() -> Tokenizer:
    vocabulary = {entry: place for place, entry in enumerate(dict.fromkeys([*SPECIAL, *_PIECES]))}
    merges = [*_MERGES, ("▁", "hi"), ("▁", "ho")]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def _word_piece() -> Tokenizer:
    entries = dict.fromkeys(
        [*SPECIAL, "hi", "ho", "head", "end", *"hioabends<|>/.", *(f"##{sign}" for sign in "hioabends")]
    )
    made = Tokenizer(models.WordPiece({entry: place for place, entry in enumerate(entries)}, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def _word_level() -> Tokenizer:
    entries = {entry: place for place, entry in enumerate([*SPECIAL, "hi", "ho"])}
    made = Tokenizer(models.WordLevel(entries, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


KINDS = {
    "byte-level": _byte_level,
    "metaspace-first": lambda: _unigram("first"),
    "metaspace-always": lambda: _unigram("always"),
    "prepending": _prepending,
    "word-piece": _word_piece,
    "word-level": _word_level,
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a kind, that puts `<s>` before a text, and knows a thought's marks as plain tokens."""
    made = KINDS[kind]()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIAL[3:]),
    )
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return tokenizer
