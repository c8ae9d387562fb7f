//! Messages to prompts: renders a template and encodes what it wrote.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use minijinja::{context, Environment, Value};

use crate::added::Control;
use crate::error::{Error, Kind, Result};
use crate::sandbox::{self, Failure};
use crate::taint::{choose_mark, unmark};
use crate::template_env;
use crate::tokenizer::TextTokenizer;

/// The longest published template has some 30 KB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
const MAX_PROMPT_BYTES: usize = 64 << 20;
const MEMORY: usize = 256 << 20;
const TIME: Duration = Duration::from_secs(20);

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
    /// It once ran out of its sandbox, leaving a thread behind: not a second time.
    banned: AtomicBool,
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
            confined(MEMORY, move || template_env::compile(&owned))
                .map(Arc::new)
                .map_err(|e| Error::template(e.message))
        };
        Self { env, source: source.to_owned(), banned: AtomicBool::new(false) }
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
        if self.banned.load(Ordering::Relaxed) {
            return Err(Error::template("the template needed too much memory or time before"));
        }
        let size: usize = messages.iter().map(|(role, content)| role.len() + content.len()).sum();
        let (bos, eos) = (chat.bos_token.to_owned(), chat.eos_token.to_owned());
        let add_generation_prompt = chat.add_generation_prompt;
        let result = confined(MEMORY + 16 * size, move || {
            let messages: Vec<Value> = messages
                .into_iter()
                .map(|(role, content)| context! { role => role, content => content })
                .collect();
            let values = context! {
                messages => messages, tools => (), documents => (), bos_token => bos,
                eos_token => eos, add_generation_prompt => add_generation_prompt,
            };
            let mut prompt = Bounded(Vec::new());
            env.get_template(template_env::NAME)?.render_captured_to(values, &mut prompt)?;
            Ok(prompt.0)
        });
        if let Err(Error { kind: Kind::Internal, message }) = result {
            self.banned.store(true, Ordering::Relaxed);
            return Err(Error::template(message));
        }
        String::from_utf8(result?).map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }
}

/// Internal: the work left its bounds.
fn confined<T: Send + 'static>(
    memory: usize,
    work: impl FnOnce() -> std::result::Result<T, minijinja::Error> + Send + 'static,
) -> Result<T> {
    // The error is put in words inside: it can be as large as what it tells about.
    let outcome = sandbox::run(memory, TIME, || work().map_err(|e| in_words(&e)));
    match outcome {
        Ok(result) => result.map_err(Error::template),
        Err(Failure::Panic) => Err(Error::template("the template engine failed")),
        Err(Failure::Thread) => Err(Error::template("no thread to render the template on")),
        Err(Failure::Memory) => {
            Err(Error::new(Kind::Internal, "the template needs too much memory"))
        }
        Err(Failure::Time) => Err(Error::new(Kind::Internal, "the template takes too long")),
    }
}

fn in_words(error: &minijinja::Error) -> String {
    const LONGEST: usize = 1000;
    error.to_string().chars().take(LONGEST).collect()
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
