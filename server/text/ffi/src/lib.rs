//! Tokenizers and chat templates behind a C ABI (`babai_text.h`).
//!
//! `tokenizer` turns text to ids through Hugging Face `tokenizers`, `gguf` writes a GGUF vocabulary
//! down as a tokenizer.json, `pieces` turns ids back to text, `chat` renders templates and `taint`
//! keeps message text from spelling control tokens. Model files are hostile: every failure is an
//! `Error`, every panic is caught at the boundary in `ffi`, and templates run inside `sandbox`.

mod added;
mod chat;
mod config;
mod error;
mod ffi;
mod gguf;
mod pieces;
mod sandbox;
mod taint;
mod template_env;
mod tokenizer;

#[global_allocator]
static ALLOCATOR: sandbox::BudgetedAllocator = sandbox::BudgetedAllocator;
