//! Finding added tokens in text, with the power to refuse one at a given place.
//!
//! `tokenizers` offers only "all special tokens" or "none"; chat prompts need "those of the template,
//! not those of a message". The matching rules are those of the tokenizer.json format: leftmost
//! longest, `single_word`, `lstrip`, `rstrip`.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::normalizer::Range as Referential;
use tokenizers::{AddedToken, NormalizedString, Token};

use crate::error::{Error, Result};

/// Which control tokens may be read out of a text.
pub enum Control {
    Parse,
    Never,
    /// All but those that touch one of these byte ranges of the original text (sorted, disjoint).
    Outside(Vec<Range<usize>>),
}

impl Control {
    fn allows(&self, place: &Range<usize>) -> bool {
        match self {
            Control::Parse => true,
            Control::Never => false,
            Control::Outside(tainted) => {
                let next = tainted.partition_point(|t| t.end <= place.start);
                tainted.get(next).is_none_or(|t| t.start >= place.end)
            }
        }
    }
}

type Piece = (NormalizedString, Option<Vec<Token>>);

pub struct AddedMatcher {
    patterns: Option<AhoCorasick>,
    tokens: Vec<(u32, AddedToken)>,
}

impl AddedMatcher {
    /// `entries`: what to look for, the id it stands for, and its rules.
    pub fn new(entries: Vec<(String, u32, AddedToken)>) -> Result<Self> {
        let texts = entries.iter().map(|(text, ..)| text.as_str());
        let patterns = (!entries.is_empty())
            .then(|| AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts))
            .transpose()
            .map_err(|e| Error::tokenizer(format!("added tokens: {e}")))?;
        let tokens = entries.into_iter().map(|(_, id, token)| (id, token)).collect();
        Ok(Self { patterns, tokens })
    }

    /// Cuts `text` into added tokens (with their id) and what lies between them.
    pub fn cut(&self, text: NormalizedString, control: &Control) -> Vec<Piece> {
        let Some(patterns) = &self.patterns else { return vec![(text, None)] };
        let mut pieces = Vec::new();
        let (mut done, mut from) = (0, 0);
        while let Some(found) = patterns.find(Input::new(text.get()).range(from..)) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            if !self.stands(token, &text, found.range(), control) {
                from = next_char(text.get(), found.start());
                continue;
            }
            let place = widen(token, text.get(), found.range(), done);
            pieces.extend(slice(&text, done..place.start).map(|s| (s, None)));
            pieces.extend(slice(&text, place.clone()).map(|s| {
                let value = s.get().to_owned();
                let offsets = (0, value.len());
                (s, Some(vec![Token::new(*id, value, offsets)]))
            }));
            done = place.end;
            from = place.end;
        }
        pieces.extend(slice(&text, done..text.get().len()).map(|s| (s, None)));
        pieces
    }

    fn stands(
        &self,
        token: &AddedToken,
        text: &NormalizedString,
        place: Range<usize>,
        control: &Control,
    ) -> bool {
        if token.single_word {
            let (before, after) = (&text.get()[..place.start], &text.get()[place.end..]);
            if before.chars().next_back().is_some_and(is_word)
                || after.chars().next().is_some_and(is_word)
            {
                return false;
            }
        }
        !token.special || control.allows(&original(text, place))
    }
}

/// Where a normalized range came from, in bytes of the original text.
fn original(text: &NormalizedString, place: Range<usize>) -> Range<usize> {
    match text.slice(Referential::Normalized(place)) {
        Some(s) => {
            let (start, end) = s.offsets_original();
            start..end
        }
        None => 0..usize::MAX, // cannot be placed: touches everything
    }
}

fn slice(text: &NormalizedString, place: Range<usize>) -> Option<NormalizedString> {
    (!place.is_empty()).then(|| text.slice(Referential::Normalized(place))).flatten()
}

fn widen(token: &AddedToken, text: &str, place: Range<usize>, done: usize) -> Range<usize> {
    let start = match token.lstrip {
        true => done + text[done..place.start].trim_end().len(),
        false => place.start,
    };
    let end = match token.rstrip {
        true => text.len() - text[place.end..].trim_start().len(),
        false => place.end,
    };
    start..end
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn next_char(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}
