//! Keeps message text from spelling control tokens.
//!
//! A template is free to trim, join, compare and split message text before it reaches the prompt, so
//! what came from a message must carry a mark through the rendering. Characters that could be part
//! of a control token are followed by a mark: one private-use character that occurs nowhere in the
//! input. After rendering the marks are taken out again, and no control token may be read where one
//! stood. Ordinary text holds no such characters, is not touched and renders as it always would.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;

use aho_corasick::AhoCorasick;
use tokenizers::Tokenizer;

use crate::error::{Error, Result};

/// Roles that templates know; they may complete a control token (`'<|' + role + '|>'`).
const KNOWN_ROLES: [&str; 9] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
    "ipython",
    "observation",
    "model",
];

pub struct Guard {
    specials: Vec<String>,
    finder: AhoCorasick,
    /// A control token is looked for in normalized text, where its raw spelling can be anything.
    mark_all: bool,
}

impl Guard {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let special = tokenizer.get_added_tokens_decoder().into_values().filter(|t| t.special);
        let special: Vec<_> = special.filter(|t| !t.content.is_empty()).collect();
        let mark_all = tokenizer.get_normalizer().is_some() && special.iter().any(|t| t.normalized);
        let specials: Vec<String> = special.into_iter().map(|t| t.content).collect();
        let finder = AhoCorasick::new(&specials)
            .map_err(|e| Error::tokenizer(format!("special tokens: {e}")))?;
        Ok(Self { specials, finder, mark_all })
    }

    pub fn mark_role(&self, role: &str, mark: char) -> String {
        if KNOWN_ROLES.contains(&role) {
            return role.to_owned();
        }
        self.mark(role, mark)
    }

    /// `text` with `mark` after each character that could be part of a control token.
    pub fn mark(&self, text: &str, mark: char) -> String {
        let risky = self.risky(text);
        if risky.is_empty() {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len() + 4 * risky.len());
        let mut ranges = risky.into_iter().peekable();
        for (at, c) in text.char_indices() {
            out.push(c);
            while ranges.next_if(|r| r.end <= at).is_some() {}
            if ranges.peek().is_some_and(|r| r.start <= at) {
                out.push(mark);
            }
        }
        out
    }

    /// Sorted, disjoint byte ranges.
    fn risky(&self, text: &str) -> Vec<Range<usize>> {
        if self.mark_all {
            return Vec::from([0..text.len()]);
        }
        let mut ranges: Vec<Range<usize>> =
            self.finder.find_overlapping_iter(text).map(|m| m.range()).collect();
        // Templates trim, and then write next to what is left.
        let start = text.len() - text.trim_start().len();
        let trimmed = text.trim();
        for special in &self.specials {
            ranges.extend(edges(trimmed, special).map(|r| start + r.start..start + r.end));
        }
        merge(ranges)
    }
}

/// The parts of `text` that would belong to `special` if the right text stood before or after it.
fn edges(text: &str, special: &str) -> impl Iterator<Item = Range<usize>> {
    let inside = !text.is_empty() && special.contains(text);
    let cuts = || special.char_indices().map(|(at, _)| at).skip(1);
    let tail = cuts().filter(|at| text.ends_with(&special[..*at])).max();
    let head = cuts().map(|at| &special[at..]).find(|part| text.starts_with(part));
    inside
        .then_some(0..text.len())
        .into_iter()
        .chain(tail.map(|length| text.len() - length..text.len()))
        .chain(head.map(|part| 0..part.len()))
}

fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|r| r.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A private-use character that is in none of `texts`, drawn at random: a template cannot know it.
pub fn choose_mark<'a>(texts: impl Iterator<Item = &'a str>) -> Option<char> {
    const FIRST: u32 = 0xF0000;
    const COUNT: u32 = 0xFFFE;
    let mut used = vec![false; COUNT as usize];
    for c in texts.flat_map(str::chars) {
        if let Some(used) = used.get_mut((c as u32).wrapping_sub(FIRST) as usize) {
            *used = true;
        }
    }
    let start = RandomState::new().build_hasher().finish() as u32 % COUNT;
    let places = (0..COUNT).map(|i| (start + i) % COUNT);
    places.filter(|p| !used[*p as usize]).find_map(|p| char::from_u32(FIRST + p))
}

/// Takes the marks out; the byte ranges of what they marked, sorted and disjoint.
pub fn unmark(text: &str, mark: char) -> (String, Vec<Range<usize>>) {
    let mut clean = String::with_capacity(text.len());
    let mut tainted: Vec<Range<usize>> = Vec::new();
    let mut last = 0..0;
    for c in text.chars() {
        if c != mark {
            last = clean.len()..clean.len() + c.len_utf8();
            clean.push(c);
        } else if !last.is_empty() {
            match tainted.last_mut() {
                Some(range) if range.end >= last.start => range.end = last.end,
                _ => tainted.push(last.clone()),
            }
        }
    }
    (clean, tainted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, special: &str) -> Vec<Range<usize>> {
        merge(edges(text, special).collect())
    }

    #[test]
    fn edges_are_what_neighbours_could_complete() {
        assert_eq!(found("a <|im", "<|im_end|>"), vec![2..6]);
        assert_eq!(found("end|> b", "<|im_end|>"), vec![0..5]);
        assert_eq!(found("im", "<|im_end|>"), vec![0..2]);
        assert!(found("plain words", "<|im_end|>").is_empty());
        assert!(found("", "<s>").is_empty());
    }

    #[test]
    fn unmark_undoes_marking_and_tells_the_place() {
        let mark = choose_mark(["\u{F0000}"].into_iter()).unwrap();
        let text = format!("aé{mark}b{mark}c");
        assert_eq!(unmark(&text, mark), ("aébc".to_owned(), vec![1..4]));
        // A mark whose character the template cut off marks nothing it should not.
        assert_eq!(unmark(&format!("{mark}x"), mark), ("x".to_owned(), vec![]));
    }
}
