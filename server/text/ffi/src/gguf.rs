//! A GGUF vocabulary written down as the tokenizer.json that behaves the same.
//!
//! The file holds tokens and scores or merges, but names its pre-tokenizer only by a word
//! (`tokenizer.ggml.pre`), so the patterns are tabled here: they are the ones in the tokenizer.json
//! files that the models were published with.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{json, Map, Value};

use crate::error::{Error, Result};

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Word mark of SentencePiece.
const MARK: &str = "\u{2581}";

/// Bound on the sum of squared piece lengths, which is what finding the merges costs. Published
/// vocabularies stay below 2^26.
const MAX_SPLIT_WORK: usize = 1 << 31;

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a file that names no pre-tokenizer is read with, as llama.cpp does: four cuts in turn.
const DEFAULT_PATTERNS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

pub struct Vocabulary<'a> {
    pub model: &'a str,
    pub pre: &'a str,
    pub tokens: Vec<&'a str>,
    pub scores: &'a [f32],
    pub types: &'a [i32],
    pub merges: Vec<&'a str>,
    pub add_bos: bool,
    pub add_eos: bool,
    pub add_space_prefix: bool,
    pub bos: i32,
    pub eos: i32,
    pub unk: i32,
}

pub fn to_json(vocabulary: &Vocabulary) -> Result<Vec<u8>> {
    let ids = vocabulary.ids()?;
    let mut tokenizer = match vocabulary.model {
        "gpt2" => byte_level(vocabulary)?,
        "llama" => sentence_piece(vocabulary, &ids)?,
        other => {
            return Err(Error::tokenizer(format!(
                "GGUF tokenizer model {other:?} is not supported"
            )))
        }
    };
    tokenizer["version"] = json!("1.0");
    tokenizer["added_tokens"] = vocabulary.added_tokens();
    tokenizer["post_processor"] = vocabulary.post_processor()?;
    tokenizer["model"]["type"] = json!("BPE");
    tokenizer["model"]["vocab"] =
        vocabulary.tokens.iter().enumerate().map(|(id, t)| (t.to_string(), json!(id))).collect();
    serde_json::to_vec(&tokenizer).map_err(|e| Error::tokenizer(e.to_string()))
}

impl<'a> Vocabulary<'a> {
    fn ids(&self) -> Result<HashMap<&'a str, usize>> {
        if !self.types.is_empty() && self.types.len() != self.tokens.len() {
            return Err(Error::tokenizer("tokenizer.ggml.token_type and tokens differ in length"));
        }
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(*token, id) {
                return Err(Error::tokenizer(format!(
                    "tokens {first} and {id} are both {token:?}"
                )));
            }
        }
        Ok(ids)
    }

    fn kind(&self, id: usize) -> i32 {
        let named = |special: i32| usize::try_from(special) == Ok(id);
        match self.types.get(id) {
            Some(kind) => *kind,
            None if named(self.unk) => UNKNOWN,
            None if named(self.bos) || named(self.eos) => CONTROL,
            None => NORMAL,
        }
    }

    fn token(&self, id: i32, what: &str) -> Result<&'a str> {
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        token.copied().ok_or_else(|| {
            Error::tokenizer(format!("{what} token id {id} is outside [0, {})", self.tokens.len()))
        })
    }

    fn added_tokens(&self) -> Value {
        let entry = |id: usize, special: bool| {
            json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": special})
        };
        let ids = (0..self.tokens.len()).filter(|id| !self.tokens[*id].is_empty());
        ids.filter_map(|id| match self.kind(id) {
            UNKNOWN | CONTROL => Some(entry(id, true)),
            USER_DEFINED => Some(entry(id, false)),
            _ => None,
        })
        .collect()
    }

    fn post_processor(&self) -> Result<Value> {
        let mut known = Map::new();
        let mut frame = |add: bool, id: i32, what: &str| -> Result<Option<Value>> {
            if !add || id < 0 {
                return Ok(None);
            }
            let token = self.token(id, what)?;
            known.insert(token.into(), json!({"id": token, "ids": [id], "tokens": [token]}));
            Ok(Some(json!({"SpecialToken": {"id": token, "type_id": 0}})))
        };
        let before = frame(self.add_bos, self.bos, "bos")?;
        let after = frame(self.add_eos, self.eos, "eos")?;
        if known.is_empty() {
            return Ok(Value::Null);
        }
        let text = |name: &str| Some(json!({"Sequence": {"id": name, "type_id": 0}}));
        let join = |parts: [Option<Value>; 4]| parts.into_iter().flatten().collect::<Value>();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": join([before.clone(), text("A"), None, after.clone()]),
            "pair": join([before, text("A"), text("B"), after]),
            "special_tokens": known,
        }))
    }
}

/// Merges over a printable alphabet of bytes (GPT-2, Radford et al. 2019).
fn byte_level(vocabulary: &Vocabulary) -> Result<Value> {
    let merges: Option<Value> = vocabulary.merges.iter().map(|m| pair(m)).collect();
    Ok(json!({
        "normalizer": if vocabulary.pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(vocabulary.pre)?,
        "decoder": byte_level_step(false),
        "model": {
            "ignore_merges": is_llama3(vocabulary.pre),
            "merges": merges.ok_or_else(|| Error::tokenizer("a merge is not two tokens"))?,
        },
    }))
}

fn pair(merge: &str) -> Option<Value> {
    let (left, right) = merge.split_once(' ')?;
    (!left.is_empty() && !right.is_empty()).then(|| json!([left, right]))
}

fn is_llama3(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3")
}

fn pre_tokenizer(pre: &str) -> Result<Value> {
    let cut = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let steps = match pre {
        "gpt-2" => vec![byte_level_step(true)],
        "smollm" => {
            vec![json!({"type": "Digits", "individual_digits": true}), byte_level_step(true)]
        }
        "qwen2" => vec![cut(QWEN2_PATTERN), byte_level_step(false)],
        _ if is_llama3(pre) => vec![cut(LLAMA3_PATTERN), byte_level_step(false)],
        "default" | "" => {
            DEFAULT_PATTERNS.into_iter().map(cut).chain([byte_level_step(false)]).collect()
        }
        other => {
            return Err(Error::tokenizer(format!(
                "GGUF pre-tokenizer {other:?} (tokenizer.ggml.pre) is not supported"
            )))
        }
    };
    Ok(json!({"type": "Sequence", "pretokenizers": steps}))
}

fn byte_level_step(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// SentencePiece BPE (Kudo and Richardson 2018): the pair that makes the best-scored piece merges
/// first; what has no piece falls back to bytes.
fn sentence_piece(vocabulary: &Vocabulary, ids: &HashMap<&str, usize>) -> Result<Value> {
    if !matches!(vocabulary.pre, "default" | "") {
        return Err(Error::tokenizer(format!(
            "GGUF pre-tokenizer {:?} (tokenizer.ggml.pre) is not supported with model \"llama\"",
            vocabulary.pre
        )));
    }
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", MARK)];
    let mut decoders =
        vec![replace(MARK, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if vocabulary.add_space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": MARK}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = match vocabulary.unk {
        id if id < 0 => None,
        id => Some(vocabulary.token(id, "unknown")?),
    };
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            "merges": merges_by_score(vocabulary, ids)?,
        },
    }))
}

/// SentencePiece keeps no merges, only scores: every way to split a piece in two pieces is one.
fn merges_by_score(vocabulary: &Vocabulary, ids: &HashMap<&str, usize>) -> Result<Value> {
    let (tokens, scores) = (&vocabulary.tokens, vocabulary.scores);
    if scores.len() != tokens.len() || scores.iter().any(|s| !s.is_finite()) {
        return Err(Error::tokenizer("tokenizer.ggml.scores: one finite score a token is needed"));
    }
    let work =
        tokens.iter().try_fold(0usize, |sum, t| sum.checked_add(t.len().checked_mul(t.len())?));
    if work.is_none_or(|w| w > MAX_SPLIT_WORK) {
        return Err(Error::tokenizer("tokens are too long for a SentencePiece vocabulary"));
    }
    let normal = |text: &str| ids.get(text).copied().filter(|id| vocabulary.kind(*id) == NORMAL);
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| vocabulary.kind(*id) == NORMAL) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left), Some(right)) = (normal(left), normal(right)) {
                merges.push((id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| {
        let better = scores[b.0].partial_cmp(&scores[a.0]).unwrap_or(Ordering::Equal);
        better.then(a.cmp(b))
    });
    Ok(merges.into_iter().map(|(_, left, right)| json!([tokens[left], tokens[right]])).collect())
}
