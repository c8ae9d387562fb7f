//! Text to ids.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
    Token, Tokenizer,
};

use crate::added::{AddedMatcher, Control};
use crate::error::{Error, Kind, Result};
use crate::pieces::Pieces;
use crate::taint::Guard;

/// How much longer normalization may make a text. Word marks make it three times as long.
const MAX_GROWTH: usize = 64;

/// Largest tokenizer.json read from a file; the largest published ones stay below 40 MiB.
const MAX_JSON_BYTES: usize = 64 << 20;

pub struct TextTokenizer {
    inner: Tokenizer,
    /// Added tokens that are looked for before and after normalization.
    raw: AddedMatcher,
    normalized: AddedMatcher,
    unknown: Option<u32>,
    pub pieces: Arc<Pieces>,
    pub guard: Guard,
}

impl TextTokenizer {
    pub fn from_file(json: &[u8]) -> Result<Self> {
        if json.len() > MAX_JSON_BYTES {
            return Err(Error::tokenizer(format!(
                "tokenizer.json has {} bytes; at most {MAX_JSON_BYTES} are read",
                json.len()
            )));
        }
        Self::from_json(json)
    }

    pub fn from_json(json: &[u8]) -> Result<Self> {
        let mut inner = Tokenizer::from_bytes(json).map_err(|e| Error::tokenizer(e.to_string()))?;
        let file: File =
            serde_json::from_slice(json).map_err(|e| Error::tokenizer(e.to_string()))?;
        file.check_ids(&inner)?;
        check_growth(&inner)?;
        // Left over from training; they would cut or pad prompts silently.
        inner.with_truncation(None).map_err(|e| Error::tokenizer(e.to_string()))?;
        inner.with_padding(None);
        let pieces = Arc::new(Pieces::new(&inner)?);
        let (raw, normalized) = matchers(&inner)?;
        let unknown = file.unknown(&inner);
        let guard = Guard::new(&inner)?;
        Ok(Self { inner, raw, normalized, unknown, pieces, guard })
    }

    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }

    pub fn encode(&self, text: &str, add_special: bool, control: &Control) -> Result<Vec<i32>> {
        let encoding = self.run(text, control).and_then(|pieces| {
            let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
            self.inner.post_process(encoding, None, add_special)
        });
        match encoding {
            Ok(encoding) => Ok(encoding.get_ids().iter().map(|id| *id as i32).collect()),
            Err(e) => Err(Error::new(Kind::InvalidText, e.to_string())),
        }
    }

    /// The pipeline of `Tokenizer::encode`, with our own matching of added tokens in front.
    fn run(&self, text: &str, control: &Control) -> tokenizers::Result<PreTokenizedString> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, part| Ok(self.raw.cut(part, control)))?;
        pieces.split(|_, mut part| {
            if let Some(normalizer) = self.inner.get_normalizer() {
                normalizer.normalize(&mut part)?;
            }
            Ok(self.normalized.cut(part, control))
        })?;
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|part| self.tokenize(part))?;
        Ok(pieces)
    }

    /// A model may hold control tokens in its vocabulary and so produce one from plain text. None that
    /// we know does, and no text can be worth it.
    fn tokenize(&self, part: &NormalizedString) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.inner.get_model().tokenize(part.get())?;
        let forged =
            tokens.iter().find(|t| self.pieces.is_control(t.id) && Some(t.id) != self.unknown);
        match forged {
            None => Ok(tokens),
            Some(token) => Err(format!(
                "this tokenizer can write {:?} only as a control token, which plain text may not hold",
                token.value
            )
            .into()),
        }
    }
}

fn matchers(tokenizer: &Tokenizer) -> Result<(AddedMatcher, AddedMatcher)> {
    let (mut raw, mut normalized) = (Vec::new(), Vec::new());
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if token.normalized {
            normalized.push((normalized_text(tokenizer, &token)?, id, token));
        } else {
            raw.push((token.content.clone(), id, token));
        }
    }
    normalized.retain(|(text, ..)| !text.is_empty());
    // Where two entries spell the same text, the smaller id is found.
    raw.sort_by_key(|(_, id, _)| *id);
    normalized.sort_by_key(|(_, id, _)| *id);
    Ok((AddedMatcher::new(raw)?, AddedMatcher::new(normalized)?))
}

fn normalized_text(tokenizer: &Tokenizer, token: &AddedToken) -> Result<String> {
    let mut text = NormalizedString::from(token.content.as_str());
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut text).map_err(|e| Error::tokenizer(e.to_string()))?;
    }
    Ok(text.get().to_owned())
}

/// A few replacements in a row can turn any text into one that exhausts memory.
fn check_growth(tokenizer: &Tokenizer) -> Result<()> {
    let normalizer = serde_json::to_value(tokenizer.get_normalizer());
    let growth = growth(&normalizer.map_err(|e| Error::tokenizer(e.to_string()))?);
    if growth > MAX_GROWTH {
        return Err(Error::tokenizer(format!("the normalizer makes texts {growth} times as long")));
    }
    Ok(())
}

fn growth(step: &Value) -> usize {
    let length = |text: &Value| text.as_str().map_or(0, str::len);
    match step["type"].as_str() {
        Some("Sequence") => {
            let steps = step["normalizers"].as_array();
            steps.into_iter().flatten().map(growth).fold(1, usize::saturating_mul)
        }
        Some("Replace") => {
            let replaced = length(&step["pattern"]["String"]).max(1); // a pattern may match nothing
            length(&step["content"]).div_ceil(replaced).max(1)
        }
        Some("Prepend") => length(&step["prepend"]).max(1),
        _ => 1,
    }
}

/// What the library does not tell about a file.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedTokenId>,
    model: ModelHead,
}

#[derive(Deserialize)]
struct AddedTokenId {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct ModelHead {
    unk_token: Option<String>,
    unk_id: Option<u32>,
}

impl File {
    /// The library numbers added tokens itself and only warns when the file says otherwise.
    fn check_ids(&self, tokenizer: &Tokenizer) -> Result<()> {
        for token in self.added_tokens.iter().filter(|t| !t.content.is_empty()) {
            if tokenizer.token_to_id(&token.content) != Some(token.id) {
                return Err(Error::tokenizer(format!(
                    "added token {:?} cannot have id {}: it leaves a gap or is used twice",
                    token.content, token.id
                )));
            }
        }
        Ok(())
    }

    fn unknown(&self, tokenizer: &Tokenizer) -> Option<u32> {
        self.model.unk_id.or_else(|| tokenizer.token_to_id(self.model.unk_token.as_ref()?))
    }
}
