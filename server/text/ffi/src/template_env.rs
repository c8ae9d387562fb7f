//! The Jinja environment that chat templates are written for: the one of `transformers`, over minijinja.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Instructions a rendering may take; a message takes about a hundred. Bounds how deep a value nests,
/// see `sandbox`.
const FUEL: u64 = 500_000;

pub const NAME: &str = "chat_template";

pub fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_filter("tojson", tojson);
    env.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(env)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `{% generation %}` marks what to train on; it renders as if it were not there. Kept as a block, so
/// that its white space control still works.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        let lead = &tag[..tag.len() - body.len()];
        let replaced =
            [("generation", "if true"), ("endgeneration", "endif")].into_iter().find_map(
                |(word, new)| body.strip_prefix(word).filter(|r| closes(r)).map(|r| (new, r)),
            );
        match replaced {
            Some((new, after)) => {
                out.push_str(lead);
                out.push_str(new);
                rest = after;
            }
            None => rest = tag,
        }
    }
    out.push_str(rest);
    out
}

fn closes(text: &str) -> bool {
    text.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
}

/// `json.dumps(value, ensure_ascii=False)`.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: ensure_ascii is not supported",
        ));
    }
    options.assert_all_used()?;
    let text = match indent {
        Some(width) if width > 64 => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is too large"))
        }
        Some(width) => {
            write_json(&value, PrettyFormatter::with_indent(" ".repeat(width).as_bytes()))
        }
        None => write_json(&value, PythonFormatter),
    };
    text.map(Value::from)
}

fn write_json(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let bad = |e: String| Error::new(ErrorKind::BadSerialization, e);
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .map_err(|e| bad(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| bad(e.to_string()))
}

/// Python's separators: ", " and ": ".
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The current time in UTC.
fn strftime_now(format: String) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(&format, now)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format:?}")))
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"]; // 1970 began so

/// None: a directive that templates do not use.
fn strftime(format: &str, seconds: u64) -> Option<String> {
    let (days, clock) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let (month_name, weekday) = (MONTHS[month], WEEKDAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next()? {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{:02}", month + 1),
            'd' => format!("{day:02}"),
            'B' => month_name.to_owned(),
            'b' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'H' => format!("{:02}", clock / 3600),
            'M' => format!("{:02}", clock / 60 % 60),
            'S' => format!("{:02}", clock % 60),
            '%' => "%".to_owned(),
            _ => return None,
        };
    }
    Some(out)
}

/// Year, month from 0 and day from 1 of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, usize, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let env = compile(source).unwrap();
        let text = env.get_template(NAME).unwrap().render(minijinja::context! {
            list => vec!["<a>", "é"], map => minijinja::context! { b => 1, a => vec![true] },
        });
        text.unwrap()
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(render("{{ list|tojson }}"), r#"["<a>", "é"]"#);
        assert_eq!(render("{{ map|tojson }}"), r#"{"b": 1, "a": [true]}"#);
        assert_eq!(
            render("{{ map|tojson(indent=2) }}"),
            "{\n  \"b\": 1,\n  \"a\": [\n    true\n  ]\n}"
        );
    }

    #[test]
    fn generation_tags_vanish() {
        assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c"), "abc");
        assert_eq!(render("{% generation %}b{% endgeneration %}\nc"), "bc");
    }

    #[test]
    fn dates() {
        let day = 951_782_400; // 2000-02-29 00:00:00 UTC, a Tuesday
        assert_eq!(strftime("%d %b %Y %A %H:%M:%S", day).unwrap(), "29 Feb 2000 Tuesday 00:00:00");
        assert_eq!(strftime("%Y-%m-%d", day + 86_400).unwrap(), "2000-03-01");
        assert_eq!(strftime("%Q", 0), None);
    }
}
