//! The one error type that crosses the C ABI: a kind and words for a person.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    InvalidTokenizer = 1,
    InvalidText = 2,
    InvalidId = 3,
    TemplateFailed = 4,
    Internal = 5,
}

#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn tokenizer(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidTokenizer, message)
    }

    pub fn template(message: impl Into<String>) -> Self {
        Self::new(Kind::TemplateFailed, message)
    }
}
