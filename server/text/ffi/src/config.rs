//! The part of `tokenizer_config.json` that a chat template needs.

use serde_json::{json, Value};

use crate::error::{Error, Result};

pub struct Config {
    pub bos_token: String,
    pub eos_token: String,
}

impl Config {
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let config: Value = serde_json::from_slice(json)
            .map_err(|e| Error::tokenizer(format!("tokenizer_config.json: {e}")))?;
        Ok(Self { bos_token: token(&config["bos_token"]), eos_token: token(&config["eos_token"]) })
    }

    pub fn to_json(&self) -> String {
        format!("{:#}\n", json!({"bos_token": self.bos_token, "eos_token": self.eos_token}))
    }
}

/// A text, or in older files an object that holds it.
fn token(value: &Value) -> String {
    value.as_str().or(value["content"].as_str()).unwrap_or_default().to_owned()
}
