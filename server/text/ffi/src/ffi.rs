//! The C ABI, as `babai_text.h` declares it. No panic leaves a function, and every pointer is used
//! only as that header allows.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::slice::from_raw_parts;
use std::sync::Once;

use crate::added::Control;
use crate::chat::{Chat, ChatTemplate, Message};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::gguf::{self, Vocabulary};
use crate::pieces::Stream;
use crate::tokenizer::TextTokenizer;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `work`, whose failures and panics become a code and `babai_text_last_error`.
fn guarded(work: impl FnOnce() -> Result<()>) -> i32 {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| set_hook(Box::new(|_| {})));
    let error = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(panic) => Error::new(Kind::Internal, format!("panic: {}", panic_words(&*panic))),
    };
    LAST_ERROR.set(error.message);
    error.kind as i32
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    data: *const u8,
    size: usize,
}

impl Slice {
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        array(self.data, self.size)
    }

    unsafe fn text<'a>(self, kind: Kind, what: &str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()).map_err(|e| {
            Error::new(kind, format!("{what} is not valid UTF-8 at byte {}", e.valid_up_to()))
        })
    }
}

unsafe fn array<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        return &[];
    }
    from_raw_parts(data, size)
}

#[repr(C)]
pub struct Buffer<T> {
    data: *mut T,
    size: usize,
    capacity: usize,
}

impl<T> Buffer<T> {
    fn new(values: Vec<T>) -> Self {
        let mut values = ManuallyDrop::new(values);
        Self { data: values.as_mut_ptr(), size: values.len(), capacity: values.capacity() }
    }

    unsafe fn free(self) {
        if !self.data.is_null() {
            drop(Vec::from_raw_parts(self.data, self.size, self.capacity));
        }
    }
}

#[repr(C)]
pub struct Gguf {
    model: Slice,
    pre: Slice,
    tokens: *const Slice,
    num_tokens: usize,
    scores: *const f32,
    num_scores: usize,
    types: *const i32,
    num_types: usize,
    merges: *const Slice,
    num_merges: usize,
    bos: i32,
    eos: i32,
    unk: i32,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
}

impl Gguf {
    unsafe fn vocabulary(&self) -> Result<Vocabulary<'_>> {
        let text = |slice: &Slice| slice.text(Kind::InvalidTokenizer, "a GGUF vocabulary string");
        Ok(Vocabulary {
            model: text(&self.model)?,
            pre: text(&self.pre)?,
            tokens: array(self.tokens, self.num_tokens).iter().map(text).collect::<Result<_>>()?,
            scores: array(self.scores, self.num_scores),
            types: array(self.types, self.num_types),
            merges: array(self.merges, self.num_merges).iter().map(text).collect::<Result<_>>()?,
            add_bos: self.add_bos,
            add_eos: self.add_eos,
            add_space_prefix: self.add_space_prefix,
            bos: self.bos,
            eos: self.eos,
            unk: self.unk,
        })
    }
}

#[repr(C)]
pub struct CMessage {
    role: Slice,
    content: Slice,
}

#[repr(C)]
pub struct CChat {
    messages: *const CMessage,
    num_messages: usize,
    bos_token: Slice,
    eos_token: Slice,
    add_generation_prompt: bool,
}

impl CChat {
    unsafe fn chat(&self) -> Result<Chat<'_>> {
        let text = |slice: &Slice| slice.text(Kind::InvalidText, "a message");
        let message =
            |m: &CMessage| Ok(Message { role: text(&m.role)?, content: text(&m.content)? });
        let messages = array(self.messages, self.num_messages).iter().map(message);
        Ok(Chat {
            messages: messages.collect::<Result<_>>()?,
            bos_token: text(&self.bos_token)?,
            eos_token: text(&self.eos_token)?,
            add_generation_prompt: self.add_generation_prompt,
        })
    }
}

unsafe fn give<T>(out: *mut *mut T, value: T) -> Result<()> {
    *out = Box::into_raw(Box::new(value));
    Ok(())
}

unsafe fn take_back<T>(handle: *mut T) {
    if !handle.is_null() {
        guarded(|| {
            drop(Box::from_raw(handle));
            Ok(())
        });
    }
}

#[no_mangle]
extern "C" fn babai_text_last_error() -> Slice {
    LAST_ERROR.with_borrow(|words| Slice { data: words.as_ptr(), size: words.len() })
}

#[no_mangle]
unsafe extern "C" fn babai_text_tokenizer_from_json(
    json: Slice,
    out: *mut *mut TextTokenizer,
) -> i32 {
    guarded(|| give(out, loading(|| TextTokenizer::from_file(json.bytes()))?))
}

#[no_mangle]
unsafe extern "C" fn babai_text_tokenizer_from_gguf(
    gguf: &Gguf,
    out: *mut *mut TextTokenizer,
) -> i32 {
    guarded(|| {
        give(out, loading(|| TextTokenizer::from_json(&gguf::to_json(&gguf.vocabulary()?)?))?)
    })
}

/// The library panics on some files that make no sense; to the caller they are invalid like others.
fn loading(load: impl FnOnce() -> Result<TextTokenizer>) -> Result<TextTokenizer> {
    catch_unwind(AssertUnwindSafe(load))
        .unwrap_or_else(|panic| Err(Error::tokenizer(panic_words(&*panic))))
}

#[no_mangle]
unsafe extern "C" fn babai_text_tokenizer_free(tokenizer: *mut TextTokenizer) {
    take_back(tokenizer);
}

#[no_mangle]
extern "C" fn babai_text_vocab_size(tokenizer: &TextTokenizer) -> usize {
    tokenizer.pieces.size()
}

#[no_mangle]
extern "C" fn babai_text_is_control(tokenizer: &TextTokenizer, id: i32) -> bool {
    u32::try_from(id).is_ok_and(|id| tokenizer.pieces.is_control(id))
}

#[no_mangle]
unsafe extern "C" fn babai_text_to_json(tokenizer: &TextTokenizer, out: *mut Buffer<u8>) -> i32 {
    guarded(|| {
        *out = Buffer::new(tokenizer.to_json()?.into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_encode(
    tokenizer: &TextTokenizer,
    text: Slice,
    add_special: bool,
    parse_special: bool,
    out: *mut Buffer<i32>,
) -> i32 {
    guarded(|| {
        let text = text.text(Kind::InvalidText, "the text")?;
        let control = if parse_special { Control::Parse } else { Control::Never };
        *out = Buffer::new(tokenizer.encode(text, add_special, &control)?);
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_decode(
    tokenizer: &TextTokenizer,
    ids: *const i32,
    num_ids: usize,
    skip_special: bool,
    out: *mut Buffer<u8>,
) -> i32 {
    guarded(|| {
        let text = tokenizer.pieces.decode(array(ids, num_ids), skip_special)?;
        *out = Buffer::new(text.into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_stream_new(
    tokenizer: &TextTokenizer,
    skip_special: bool,
    out: *mut *mut Stream,
) -> i32 {
    guarded(|| give(out, Stream::new(tokenizer.pieces.clone(), skip_special)))
}

#[no_mangle]
unsafe extern "C" fn babai_text_stream_push(
    stream: &mut Stream,
    id: i32,
    out: *mut Buffer<u8>,
) -> i32 {
    guarded(|| {
        let mut text = String::new();
        stream.push(id, &mut text)?;
        *out = Buffer::new(text.into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_stream_flush(stream: &mut Stream, out: *mut Buffer<u8>) -> i32 {
    guarded(|| {
        let mut text = String::new();
        stream.flush(&mut text);
        *out = Buffer::new(text.into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_stream_free(stream: *mut Stream) {
    take_back(stream);
}

#[no_mangle]
unsafe extern "C" fn babai_text_template_new(source: Slice, out: *mut *mut ChatTemplate) -> i32 {
    guarded(|| give(out, ChatTemplate::new(source.text(Kind::InvalidTokenizer, "the template")?)))
}

#[no_mangle]
unsafe extern "C" fn babai_text_template_free(template: *mut ChatTemplate) {
    take_back(template);
}

#[no_mangle]
unsafe extern "C" fn babai_text_chat_encode(
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    chat: &CChat,
    out: *mut Buffer<i32>,
) -> i32 {
    guarded(|| {
        *out = Buffer::new(template.encode(tokenizer, &chat.chat()?)?);
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_chat_render(
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    chat: &CChat,
    out: *mut Buffer<u8>,
) -> i32 {
    guarded(|| {
        *out = Buffer::new(template.render(tokenizer, &chat.chat()?)?.into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_config_read(
    json: Slice,
    bos_token: *mut Buffer<u8>,
    eos_token: *mut Buffer<u8>,
) -> i32 {
    guarded(|| {
        let config = Config::from_json(json.bytes())?;
        *bos_token = Buffer::new(config.bos_token.into_bytes());
        *eos_token = Buffer::new(config.eos_token.into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_config_write(
    bos_token: Slice,
    eos_token: Slice,
    out: *mut Buffer<u8>,
) -> i32 {
    guarded(|| {
        let text = |slice: Slice| slice.text(Kind::InvalidTokenizer, "a token").map(str::to_owned);
        let config = Config { bos_token: text(bos_token)?, eos_token: text(eos_token)? };
        *out = Buffer::new(config.to_json().into_bytes());
        Ok(())
    })
}

#[no_mangle]
unsafe extern "C" fn babai_text_bytes_free(bytes: Buffer<u8>) {
    bytes.free();
}

#[no_mangle]
unsafe extern "C" fn babai_text_ids_free(ids: Buffer<i32>) {
    ids.free();
}
