//! The name as Erlang or as Elixir writes it, each as its own tools print it.

use std::fmt::{self, Write as _};

use super::Mfa;

/// What each atom of an Elixir alias begins with.
const ELIXIR: &str = "Elixir.";
/// What the compiler of Elixir puts before the name of a macro; the macro's function takes the caller's environment
/// besides the arguments.
const MACRO: &str = "MACRO-";
/// Words that are no atom without quotes: `reserved_word/1` (`lib/stdlib/src/erl_scan.erl`, OTP 25.2.3), with the two
/// of `maybe_expr`, which OTP 27 switched on.
const RESERVED: [&str; 29] = [
    "after", "and", "andalso", "band", "begin", "bnot", "bor", "bsl", "bsr", "bxor", "case", "catch", "cond", "div",
    "else", "end", "fun", "if", "let", "maybe", "not", "of", "or", "orelse", "receive", "rem", "try", "when", "xor",
];
/// Names that Elixir calls remotely without quotes though they are no identifiers: the operators that are functions or
/// macros (Elixir 1.14, reference of operators).
const OPERATORS: [&str; 36] = [
    "!", "!=", "!==", "&&", "&&&", "*", "**", "+", "++", "+++", "-", "--", "---", "..", "/", "<", "<<<", "<<~", "<=",
    "<>", "<~", "<~>", "==", "===", "=~", ">", ">=", ">>>", "@", "^^^", "|>", "||", "|||", "~>", "~>>", "~~~",
];

impl fmt::Display for Mfa {
    /// `lists:map/2`, `'my mod':f/1`, `MyApp.Worker.run/2`, `anonymous fn/1 in MyApp.Worker.run/2`,
    /// `macro MyApp.Worker.check/1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(module) = alias(&self.module) {
            return write_elixir(f, module, &self.function, self.arity);
        }
        write_erlang_atom(f, &self.module)?;
        f.write_char(':')?;
        write_erlang_atom(f, &self.function)?;
        write!(f, "/{}", self.arity)
    }
}

impl Mfa {
    /// Module and function, each as it is written: `lists` and `map/2`, `MyApp.Worker` and `run/2`. Where the module stands
    /// within the name, as in `anonymous fn/1 in MyApp.Worker.run/2`, the function is all of it.
    pub fn parts(&self) -> (String, String) {
        let whole = self.to_string();
        let (module, separator) = match alias(&self.module) {
            Some(alias) => (alias.to_owned(), '.'),
            None => (Atom(&self.module).to_string(), ':'),
        };
        let function = whole.strip_prefix(module.as_str()).and_then(|rest| rest.strip_prefix(separator));
        let function = function.unwrap_or(&whole).to_owned();
        (module, function)
    }
}

/// An atom as Erlang writes it.
struct Atom<'a>(&'a str);

impl fmt::Display for Atom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_erlang_atom(f, self.0)
    }
}

/// The alias that the name of a module stands for.
fn alias(module: &str) -> Option<&str> {
    let alias = module.strip_prefix(ELIXIR)?;
    let is_part = |part: &str| {
        let rest = part.strip_prefix(|first: char| first.is_ascii_uppercase());
        rest.is_some_and(|rest| rest.chars().all(|character| character.is_ascii_alphanumeric() || character == '_'))
    };
    if !alias.split('.').all(is_part) {
        return None;
    }
    // `Elixir.Elixir.A` is not `Elixir.A`, which is `A`.
    Some(if alias == "Elixir" || alias.starts_with(ELIXIR) { module } else { alias })
}

fn write_elixir(f: &mut fmt::Formatter<'_>, module: &str, function: &str, arity: u8) -> fmt::Result {
    if let Some((name, outer)) = enclosing(function) {
        write!(f, "anonymous fn/{arity} in ")?;
        return write_named(f, module, name, outer);
    }
    write_named(f, module, function, arity)
}

fn write_named(f: &mut fmt::Formatter<'_>, module: &str, function: &str, arity: u8) -> fmt::Result {
    let (kind, function, arity) = match (function.strip_prefix(MACRO), arity.checked_sub(1)) {
        (Some(name), Some(arity)) => ("macro ", name, arity),
        _ => ("", function, arity),
    };
    write!(f, "{kind}{module}.")?;
    if is_elixir_identifier(function) || OPERATORS.contains(&function) {
        f.write_str(function)?;
    } else {
        write_quoted(f, function, '"')?;
    }
    write!(f, "/{arity}")
}

/// Name and arity of the function in which the compiler found the fun of this name, `-NAME/ARITY-fun-NUMBER-`.
fn enclosing(function: &str) -> Option<(&str, u8)> {
    let (name, rest) = function.strip_prefix('-')?.rsplit_once('/')?;
    let mut parts = rest.split('-');
    let (arity, kind, number) = (parts.next()?, parts.next()?, parts.next()?);
    let is_fun = kind == "fun" && number.bytes().all(|digit| digit.is_ascii_digit());
    let ends = parts.next() == Some("") && parts.next().is_none();
    Some((name, arity.parse().ok()?)).filter(|_| is_fun && ends)
}

fn is_elixir_identifier(name: &str) -> bool {
    let name = name.strip_suffix(['?', '!']).unwrap_or(name);
    let mut characters = name.chars();
    let starts = characters.next().is_some_and(|first| first == '_' || first.is_alphabetic() && !first.is_uppercase());
    starts && characters.all(|character| character == '_' || character.is_alphanumeric())
}

fn write_erlang_atom(f: &mut fmt::Formatter<'_>, atom: &str) -> fmt::Result {
    let is_letter = |character: char| u32::from(character) < 256 && character.is_alphanumeric();
    let mut characters = atom.chars();
    // `º` and `ª` are letters to Unicode and to the VM's scanner none.
    let starts = characters
        .next()
        .is_some_and(|first| is_letter(first) && first.is_lowercase() && !"\u{aa}\u{ba}".contains(first));
    let plain = |character: char| {
        character.is_ascii_alphanumeric()
            || "_@".contains(character)
            || ('\u{c0}'..='\u{ff}').contains(&character) && is_letter(character)
    };
    if starts && characters.all(plain) && !RESERVED.contains(&atom) {
        return f.write_str(atom);
    }
    write_quoted(f, atom, '\'')
}

/// `text` between two `quote`s, nothing in it that would disturb a line of a report.
fn write_quoted(f: &mut fmt::Formatter<'_>, text: &str, quote: char) -> fmt::Result {
    f.write_char(quote)?;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            '\r' => f.write_str("\\r")?,
            '\x08' => f.write_str("\\b")?,
            '\x0b' => f.write_str("\\v")?,
            '\x0c' => f.write_str("\\f")?,
            '\\' => f.write_str("\\\\")?,
            '#' if quote == '"' && characters.peek() == Some(&'{') => f.write_str("\\#")?,
            _ if character == quote => write!(f, "\\{character}")?,
            _ if character.is_control() => write!(f, "\\x{{{:X}}}", u32::from(character))?,
            _ => f.write_char(character)?,
        }
    }
    f.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(module: &str, function: &str, arity: u8, expected: &str) {
        let mfa = Mfa { module: module.into(), function: function.into(), arity };
        assert_eq!(mfa.to_string(), expected);
    }

    #[test]
    fn parts_make_up_the_whole() {
        let check = |module: &str, function: &str, expected: (&str, &str)| {
            let mfa = Mfa { module: module.into(), function: function.into(), arity: 1 };
            assert_eq!(mfa.parts(), (expected.0.to_owned(), expected.1.to_owned()));
        };
        check("lists", "map", ("lists", "map/1"));
        check("my mod", "f", ("'my mod'", "f/1"));
        check("Elixir.MyApp.Worker", "run", ("MyApp.Worker", "run/1"));
        check("Elixir.MyApp.Worker", "-run/2-fun-0-", ("MyApp.Worker", "anonymous fn/1 in MyApp.Worker.run/2"));
    }

    #[test]
    fn erlang_as_erlang_writes_it() {
        check("lists", "map", 2, "lists:map/2");
        check("my mod", "f", 1, "'my mod':f/1");
        check("erlang", "+", 2, "erlang:'+'/2");
        check("erlang", "and", 2, "erlang:'and'/2");
        check("erlang", "maybe", 0, "erlang:'maybe'/0");
        check("deep", "-outer/2-lc$^0/1-0-", 1, "deep:'-outer/2-lc$^0/1-0-'/1");
        check("deep", "-outer/2-fun-0-", 1, "deep:'-outer/2-fun-0-'/1");
        check("node@host", "Up", 0, "node@host:'Up'/0");
        check("", "_x", 0, "'':'_x'/0");
        check("gro\u{df}", "\u{f7}", 0, "gro\u{df}:'\u{f7}'/0");
        check("\u{6f22}", "a\u{6f22}", 0, "'\u{6f22}':'a\u{6f22}'/0");
        check("it's", "a\\b\n\u{1}", 0, "'it\\'s':'a\\\\b\\n\\x{1}'/0");
        check("elixir", "start", 2, "elixir:start/2");
    }

    #[test]
    fn elixir_as_elixir_writes_it() {
        check("Elixir.MyApp.Worker", "run", 2, "MyApp.Worker.run/2");
        check("Elixir.MyApp.Worker", "valid?", 1, "MyApp.Worker.valid?/1");
        check("Elixir.MyApp.Worker", "run!", 1, "MyApp.Worker.run!/1");
        check("Elixir.Kernel", "|>", 2, "Kernel.|>/2");
        check("Elixir.A", "and", 2, "A.and/2");
        check("Elixir.A", "h\u{e9}llo", 0, "A.h\u{e9}llo/0");
        check("Elixir.A", "hello world", 0, "A.\"hello world\"/0");
        check("Elixir.A", "Up", 0, "A.\"Up\"/0");
        check("Elixir.A", "", 0, "A.\"\"/0");
        check("Elixir.A", "say \"#{x}\"", 0, "A.\"say \\\"\\#{x}\\\"\"/0");
        check("Elixir.A", "__struct__", 1, "A.__struct__/1");
        check("Elixir.A", "-run/2-lc$^0/1-0-", 1, "A.\"-run/2-lc$^0/1-0-\"/1");
    }

    #[test]
    fn elixirs_funs_and_macros() {
        check("Elixir.MyApp.Worker", "-run/2-fun-0-", 1, "anonymous fn/1 in MyApp.Worker.run/2");
        check("Elixir.A", "-a/b/2-fun-10-", 0, "anonymous fn/0 in A.\"a/b\"/2");
        check("Elixir.A", "-a-b/2-fun-1-", 0, "anonymous fn/0 in A.\"a-b\"/2");
        check("Elixir.A", "MACRO-check", 2, "macro A.check/1");
        check("Elixir.A", "MACRO-check", 0, "A.\"MACRO-check\"/0");
        check("Elixir.A", "-MACRO-check/3-fun-0-", 1, "anonymous fn/1 in macro A.check/2");
        check("Elixir.A", "-run/2-fun-x-", 1, "A.\"-run/2-fun-x-\"/1");
        check("Elixir.A", "-run/300-fun-0-", 1, "A.\"-run/300-fun-0-\"/1");
    }

    #[test]
    fn not_each_atom_of_elixir_is_an_alias() {
        check("Elixir", "f", 0, "'Elixir':f/0");
        check("Elixir.my_app", "f", 0, "'Elixir.my_app':f/0");
        check("Elixir.A..B", "f", 0, "'Elixir.A..B':f/0");
        check("Elixir.A B", "f", 0, "'Elixir.A B':f/0");
        check("Elixir.Elixir.A", "f", 0, "Elixir.Elixir.A.f/0");
    }
}
