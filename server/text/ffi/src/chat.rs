//! Messages to prompts: renders a template and encodes what it wrote.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use minijinja::{context, Environment, Value};

use crate::added::Control;
use crate::error::{Error, Kind, Result};
use crate::sandbox::{self, Failure};
use crate::taint::{choose_mark, unmark};
use crate::template_env;
use crate::tokenizer::TextTokenizer;

/// The longest published template has some 30 KB. Bounds how deep an expression nests, see `sandbox`.
const MAX_SOURCE_BYTES: usize = 128 << 10;
const MAX_PROMPT_BYTES: usize = 64 << 20;
const MEMORY: usize = 256 << 20;
/// A stalled machine can use up the time of an honest template, nothing can its memory.
const MAX_STRIKES: u32 = 3;
const TIME: Duration = Duration::from_secs(10);

pub struct Message<'a> {
    pub role: &'a str,
    pub content: &'a str,
}

pub struct Chat<'a> {
    pub messages: Vec<Message<'a>>,
    pub bos_token: &'a str,
    pub eos_token: &'a str,
    pub add_generation_prompt: bool,
}

pub struct ChatTemplate {
    /// A template that does not compile fails when it is used: the model still generates from text.
    env: Result<Arc<Environment<'static>>>,
    source: String,
    /// How often it ran out of its sandbox. Each time leaves a thread behind.
    strikes: AtomicU32,
}

/// A prompt, and the parts of it that came from messages and may not be read as control tokens.
struct Prompt {
    text: String,
    tainted: Vec<Range<usize>>,
}

impl ChatTemplate {
    pub fn new(source: &str) -> Self {
        let env = if source.len() > MAX_SOURCE_BYTES {
            Err(Error::template(format!("the template exceeds {MAX_SOURCE_BYTES} bytes")))
        } else {
            let owned = source.to_owned();
            let compiled =
                sandbox::run(MEMORY, TIME, move || worded(template_env::compile(&owned)));
            compiled.unwrap_or_else(|failure| Err(Error::template(words(&failure)))).map(Arc::new)
        };
        Self { env, source: source.to_owned(), strikes: AtomicU32::new(0) }
    }

    pub fn encode(&self, tokenizer: &TextTokenizer, chat: &Chat) -> Result<Vec<i32>> {
        let prompt = self.prompt(tokenizer, chat)?;
        let control = match prompt.tainted.is_empty() {
            true => Control::Parse,
            false => Control::Outside(prompt.tainted),
        };
        tokenizer.encode(&prompt.text, /*add_special=*/ false, &control)
    }

    pub fn render(&self, tokenizer: &TextTokenizer, chat: &Chat) -> Result<String> {
        Ok(self.prompt(tokenizer, chat)?.text)
    }

    fn prompt(&self, tokenizer: &TextTokenizer, chat: &Chat) -> Result<Prompt> {
        let guard = &tokenizer.guard;
        let inputs = chat.messages.iter().flat_map(|m| [m.role, m.content]);
        let inputs = inputs.chain([chat.bos_token, chat.eos_token, &self.source]);
        let mark = choose_mark(inputs).ok_or_else(|| {
            Error::new(Kind::InvalidText, "the messages hold every private character")
        })?;
        let messages: Vec<(String, String)> = chat
            .messages
            .iter()
            .map(|m| (guard.mark_role(m.role, mark), guard.mark(m.content, mark)))
            .collect();
        let (text, tainted) = unmark(&self.run(chat, messages)?, mark);
        Ok(Prompt { text, tainted })
    }

    fn run(&self, chat: &Chat, messages: Vec<(String, String)>) -> Result<String> {
        let env = self.env.clone()?;
        if self.strikes.load(Ordering::Relaxed) >= MAX_STRIKES {
            return Err(Error::template("the template needed too much memory or time before"));
        }
        let size: usize = messages.iter().map(|(role, content)| role.len() + content.len()).sum();
        let (bos, eos) = (chat.bos_token.to_owned(), chat.eos_token.to_owned());
        let add_generation_prompt = chat.add_generation_prompt;
        let rendered = sandbox::run(MEMORY + 16 * size, TIME, move || {
            let messages: Vec<Value> = messages
                .into_iter()
                .map(|(role, content)| context! { role => role, content => content })
                .collect();
            worded(render(
                &env,
                context! {
                    messages => messages, tools => (), documents => (), bos_token => bos,
                    eos_token => eos, add_generation_prompt => add_generation_prompt,
                },
            ))
        });
        let prompt = rendered.unwrap_or_else(|failure| {
            self.strikes.fetch_add(strikes(&failure), Ordering::Relaxed);
            Err(Error::template(words(&failure)))
        })?;
        String::from_utf8(prompt).map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }
}

fn render(env: &Environment, values: Value) -> std::result::Result<Vec<u8>, minijinja::Error> {
    let mut prompt = Bounded(Vec::new());
    env.get_template(template_env::NAME)?.render_captured_to(values, &mut prompt)?;
    Ok(prompt.0)
}

/// Puts an error in words while still in the sandbox: it can be as large as what it tells about.
fn worded<T>(result: std::result::Result<T, minijinja::Error>) -> Result<T> {
    const LONGEST: usize = 1000;
    result.map_err(|e| Error::template(e.to_string().chars().take(LONGEST).collect::<String>()))
}

fn words(failure: &Failure) -> &'static str {
    match failure {
        Failure::Memory => "the template needs too much memory",
        Failure::Time => "the template takes too long",
        Failure::Panic => "the template engine failed",
        Failure::Thread => "no thread could be started to render the template",
    }
}

fn strikes(failure: &Failure) -> u32 {
    match failure {
        Failure::Memory => MAX_STRIKES,
        Failure::Time => 1,
        Failure::Panic | Failure::Thread => 0,
    }
}

struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            return Err(io::Error::other(format!("the prompt exceeds {MAX_PROMPT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
