//! Ids back to text: the bytes of every token in one table, and the incremental decoder over it.
//!
//! Decoding is defined here, once, as a function of the byte stream (invalid UTF-8 becomes U+FFFD, a
//! maximal subpart at a time, as `String::from_utf8_lossy` has it), so that a stream joined equals
//! the whole decoded at once. `tokenizers` defines byte fallback over whole runs of byte tokens, which
//! no stream can honour; the two differ only where a run is not valid UTF-8.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Model, Tokenizer};

use crate::error::{Error, Kind, Result};

/// Largest vocabulary accepted; the largest published ones stay below a million.
const MAX_VOCABULARY: usize = 1 << 22;

/// All tokens together; the largest published vocabularies hold some 3 MB.
const MAX_TEXT_BYTES: usize = 256 << 20;

/// The longest text that a decoder may put in place of another.
const MAX_REPLACEMENT_BYTES: usize = 16;

const REPLACEMENT: &str = "\u{FFFD}";

/// Bytes of every id, back to back.
pub struct Pieces {
    ends: Vec<u32>,
    bytes: Vec<u8>,
    control: Vec<bool>,
    lead: Lead,
}

/// What a decoder takes off the start of a text.
#[derive(Clone, Copy)]
enum Lead {
    /// Up to `n` leading occurrences.
    Characters(char, usize),
    /// Every occurrence of the word mark in the first token.
    FirstToken(char),
}

impl Pieces {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let size = vocabulary_size(tokenizer)?;
        let rules = Rules::parse(tokenizer)?;
        let added = tokenizer.get_added_vocabulary();
        let mut pieces = Self {
            ends: Vec::new(),
            bytes: Vec::new(),
            control: vec![false; size],
            lead: rules.lead,
        };
        for id in 0..size as u32 {
            let text =
                added.simple_id_to_token(id).or_else(|| tokenizer.get_model().id_to_token(id));
            if let Some(text) = text {
                pieces.control[id as usize] = added.is_special_token(&text);
                rules.append(&text, &mut pieces.bytes);
            }
            if pieces.bytes.len() > MAX_TEXT_BYTES {
                return Err(Error::tokenizer(format!(
                    "tokens exceed {MAX_TEXT_BYTES} bytes of text"
                )));
            }
            pieces.ends.push(pieces.bytes.len() as u32);
        }
        Ok(pieces)
    }

    pub fn size(&self) -> usize {
        self.ends.len()
    }

    pub fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    fn bytes(&self, id: i32) -> Result<&[u8]> {
        let index = usize::try_from(id).ok().filter(|i| *i < self.size()).ok_or_else(|| {
            Error::new(Kind::InvalidId, format!("token id {id} is outside [0, {})", self.size()))
        })?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Ok(&self.bytes[start..self.ends[index] as usize])
    }

    pub fn decode(self: &Arc<Self>, ids: &[i32], skip_control: bool) -> Result<String> {
        let mut stream = Stream::new(self.clone(), skip_control);
        let mut text = String::new();
        for id in ids {
            stream.push(*id, &mut text)?;
        }
        stream.flush(&mut text);
        Ok(text)
    }
}

/// One sequence being decoded.
pub struct Stream {
    pieces: Arc<Pieces>,
    skip_control: bool,
    /// Bytes of a character that is not complete yet: three at most after every push.
    pending: Vec<u8>,
    /// Leading characters that may still be taken off.
    lead_left: usize,
}

impl Stream {
    pub fn new(pieces: Arc<Pieces>, skip_control: bool) -> Self {
        let lead_left = match pieces.lead {
            Lead::Characters(_, n) => n,
            Lead::FirstToken(_) => usize::MAX,
        };
        Self { pieces, skip_control, pending: Vec::new(), lead_left }
    }

    /// Appends to `out` the text that became certain with `id`.
    pub fn push(&mut self, id: i32, out: &mut String) -> Result<()> {
        let pieces = self.pieces.clone();
        let bytes = pieces.bytes(id)?;
        if self.skip_control && pieces.is_control(id as u32) {
            return Ok(());
        }
        self.pending.extend_from_slice(bytes);
        self.drain(out);
        if matches!(pieces.lead, Lead::FirstToken(_)) {
            self.lead_left = 0;
        }
        Ok(())
    }

    pub fn flush(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.emit(REPLACEMENT, out);
        }
    }

    fn drain(&mut self, out: &mut String) {
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        loop {
            let (valid, bad) = match std::str::from_utf8(rest) {
                Ok(text) => return self.emit(text, out),
                Err(e) => (e.valid_up_to(), e.error_len()),
            };
            self.emit(std::str::from_utf8(&rest[..valid]).unwrap_or_default(), out);
            match bad {
                Some(length) => {
                    self.emit(REPLACEMENT, out);
                    rest = &rest[valid + length..];
                }
                None => {
                    self.pending.extend_from_slice(&rest[valid..]);
                    return;
                }
            }
        }
    }

    fn emit(&mut self, text: &str, out: &mut String) {
        let (Lead::Characters(lead, _) | Lead::FirstToken(lead)) = self.pieces.lead;
        let mut text = text;
        while self.lead_left > 0 && !text.is_empty() {
            match text.strip_prefix(lead) {
                Some(rest) => (text, self.lead_left) = (rest, self.lead_left - 1),
                None => self.lead_left = 0,
            }
        }
        out.push_str(text);
    }
}

fn vocabulary_size(tokenizer: &Tokenizer) -> Result<usize> {
    let largest = tokenizer.get_vocab(true).into_values().max();
    let size = largest.map_or(0, |id| id as usize + 1);
    match size {
        0 => Err(Error::tokenizer("the vocabulary is empty")),
        n if n > MAX_VOCABULARY => {
            Err(Error::tokenizer(format!("token id {} exceeds {MAX_VOCABULARY}", n - 1)))
        }
        n => Ok(n),
    }
}

/// How a token's text becomes bytes: the decoders of the byte-level and the SentencePiece families.
struct Rules {
    byte_level: Option<HashMap<char, u8>>,
    replace: Vec<(String, String)>,
    byte_fallback: bool,
    lead: Lead,
}

impl Rules {
    fn parse(tokenizer: &Tokenizer) -> Result<Self> {
        let decoder =
            tokenizer.get_decoder().ok_or_else(|| Error::tokenizer("no decoder is given"))?;
        let decoder = serde_json::to_value(decoder).map_err(|e| Error::tokenizer(e.to_string()))?;
        let mut rules = Self {
            byte_level: None,
            replace: Vec::new(),
            byte_fallback: false,
            lead: Lead::Characters(' ', 0),
        };
        let steps = match decoder["decoders"].as_array() {
            Some(steps) if decoder["type"] == "Sequence" => steps.clone(),
            _ => vec![decoder],
        };
        let mut last_rank = 0;
        for step in &steps {
            // The steps do not commute: only the order that every published model has is read.
            let rank = rules.add(step, steps.len()).ok_or_else(|| unsupported(step))?;
            if rank < last_rank {
                return Err(unsupported(step));
            }
            last_rank = rank;
        }
        match rules.lead {
            Lead::Characters(_, n) if n > 0 && last_rank < 3 => Err(unsupported(&steps[0])),
            _ => Ok(rules),
        }
    }

    /// Takes one step in; its rank in the order Replace, ByteFallback, Fuse, Strip, or None if it
    /// cannot be expressed.
    fn add(&mut self, step: &Value, steps: usize) -> Option<u32> {
        match step["type"].as_str()? {
            "ByteLevel" if steps == 1 => {
                self.byte_level = Some(byte_level_alphabet());
                Some(0)
            }
            "Metaspace" if steps == 1 => {
                let mark = step["replacement"].as_str()?.chars().next()?;
                self.replace.push((mark.into(), " ".into()));
                if step["prepend_scheme"] != "never" {
                    self.lead = Lead::FirstToken(' ');
                }
                Some(0)
            }
            "Replace" => {
                let (from, to) = (step["pattern"]["String"].as_str()?, step["content"].as_str()?);
                self.replace.push((from.into(), to.into()));
                (to.len() <= MAX_REPLACEMENT_BYTES && self.replace.len() == 1).then_some(0)
            }
            "ByteFallback" => {
                self.byte_fallback = true;
                Some(1)
            }
            "Fuse" => Some(2),
            "Strip" if step["stop"] == 0 => {
                let count = usize::try_from(step["start"].as_u64()?).ok()?;
                self.lead = Lead::Characters(step["content"].as_str()?.chars().next()?, count);
                Some(3)
            }
            _ => None,
        }
    }

    fn append(&self, token: &str, out: &mut Vec<u8>) {
        if let Some(alphabet) = &self.byte_level {
            let mapped: Option<Vec<u8>> =
                token.chars().map(|c| alphabet.get(&c).copied()).collect();
            return out.extend_from_slice(mapped.as_deref().unwrap_or(token.as_bytes()));
        }
        let mut text = token.to_owned();
        for (from, to) in &self.replace {
            text = text.replace(from, to);
        }
        match byte_token(&text).filter(|_| self.byte_fallback) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(text.as_bytes()),
        }
    }
}

fn unsupported(step: &Value) -> Error {
    Error::tokenizer(format!("decoder {step} is not supported"))
}

/// `<0x0A>` -> 10.
pub fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GPT-2's printable stand-ins: bytes that are printable in Latin-1 stand for themselves, the others
/// for U+0100 upward, in order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let (own, moved): (Vec<u8>, Vec<u8>) = (0..=255).partition(|b| printable(*b));
    let stand_ins = (0x100..).filter_map(char::from_u32);
    own.into_iter().map(|b| (b as char, b)).chain(stand_ins.zip(moved)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_need_exactly_two_hex_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        for text in ["<0x+A>", "<0xA>", "<0xAAA>", "0x0A", "<0xGG>"] {
            assert_eq!(byte_token(text), None, "{text}");
        }
    }

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
    }
}
