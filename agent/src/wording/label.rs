//! What is a frame called in a table, a stack and a flame graph?

use crate::stack::{Frame, FrameKind, KERNEL_MODULE};

/// What code that the VM made at run time is called as long as it has no name.
pub const JIT: &str = "Erlang code [JIT]";

/// The frame's function; without one, its place in its file; without a file, its address.
pub fn function(frame: &Frame) -> String {
    let module = frame.module.as_deref();
    let name = match (frame.kind, frame.function.as_deref().filter(|name| !name.is_empty()), module) {
        (FrameKind::Erlang, Some(function), Some(module)) => erlang(module, function),
        (_, Some(function), _) => without_parameters(function).to_owned(),
        (FrameKind::Jit, None, _) => JIT.to_owned(),
        (_, None, Some(module)) => format!("{module}+{:#x}", frame.offset.unwrap_or(0)),
        (_, None, None) => frame.address.to_string(),
    };
    clean(&name)
}

/// An Erlang function as Erlang or Elixir writes it. Only Elixir has modules that begin with a capital letter unquoted.
fn erlang(module: &str, function: &str) -> String {
    if function.contains(&format!("{module}.")) {
        return function.to_owned();
    }
    let is_elixir = module.starts_with(|first: char| first.is_uppercase());
    format!("{module}{}{function}", if is_elixir { '.' } else { ':' })
}

/// The frame's function and its file: `leak_nif [leaky.so]`, `leaky.so+0x1234`.
pub fn function_and_module(frame: &Frame) -> String {
    match (frame.kind, &frame.function, &frame.module) {
        (FrameKind::Native, Some(_), Some(module)) if module == KERNEL_MODULE => {
            format!("{} {module}", function(frame))
        }
        (FrameKind::Native, Some(_), Some(module)) => format!("{} [{}]", function(frame), clean(module)),
        _ => function(frame),
    }
}

/// The frame as a line of a stack: `leak_nif [leaky.so]  leaky.c:42`.
pub fn line(frame: &Frame) -> String {
    let kind = if frame.kind == FrameKind::Unknown { " (in no mapping)" } else { "" };
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    let place = place(frame).map(|place| format!("  {place}")).unwrap_or_default();
    format!("{}{kind}{inlined}{place}", function_and_module(frame))
}

/// A C++ function without the list of its parameters, which is longer than its name and says less.
fn without_parameters(function: &str) -> &str {
    let end = function.strip_suffix(" const").unwrap_or(function);
    if !end.ends_with(')') {
        return function;
    }
    let mut depth = 0_u32;
    for (at, letter) in end.char_indices().rev() {
        match letter {
            ')' => depth += 1,
            '(' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let name = end.get(..at).unwrap_or_default();
            // `operator()` and `(anonymous namespace)` are names.
            let is_list = !name.is_empty() && !name.ends_with("operator") && !name.ends_with("::");
            return if is_list { name } else { function };
        }
    }
    function
}

/// Source file and line: `leaky.c:42`, the folders left out.
pub fn place(frame: &Frame) -> Option<String> {
    let file = frame.file.as_deref()?;
    let name = clean(file.rsplit('/').next().unwrap_or(file));
    Some(frame.line.map_or_else(|| name.clone(), |line| format!("{name}:{line}")))
}

/// `text` without what a terminal or a browser would obey: control characters, and those that change the direction.
///
/// The names come from the node and the files that it has loaded, so anybody may have chosen them.
pub fn clean(text: &str) -> String {
    let obeyed = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    // U+FFFE and U+FFFF are not allowed in XML.
    let forbidden = |letter: char| matches!(letter, '\u{fffe}' | '\u{ffff}');
    text.replace(|letter: char| obeyed(letter) || forbidden(letter), "\u{fffd}")
}

/// The first `width` letters of `text`, with a mark where some are left out.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mapping::Address, sample};

    #[test]
    fn names_what_it_can() {
        let named = sample::frame("leaky.so", "leak", Some(("/src/leaky.c", 7)));
        assert_eq!(function_and_module(&named), "leak [leaky.so]");
        assert_eq!(place(&named).as_deref(), Some("leaky.c:7"));
        assert_eq!(function_and_module(&sample::stripped("leaky.so", 0x123)), "leaky.so+0x123");
        assert_eq!(function_and_module(&sample::jit()), JIT);
        let unknown = Frame { kind: FrameKind::Unknown, address: Address(0x10), ..sample::jit() };
        assert_eq!(function(&unknown), "0x10");
        let erlang = Frame { kind: FrameKind::Erlang, ..sample::frame("shop", "add/2", None) };
        assert_eq!(function_and_module(&erlang), "shop:add/2");
        let elixir = |function| Frame { kind: FrameKind::Erlang, ..sample::frame("MyApp.Worker", function, None) };
        assert_eq!(function_and_module(&elixir("run/2")), "MyApp.Worker.run/2");
        let anonymous = "anonymous fn/1 in MyApp.Worker.run/2";
        assert_eq!(function_and_module(&elixir(anonymous)), anonymous);
    }

    #[test]
    fn leaves_parameters_out() {
        for (function, name) in [
            ("operator new(unsigned long)", "operator new"),
            (
                "beam_jit_call_nif(process*, unsigned long (*)(enif_environment_t*, int), erl_module_nif*)",
                "beam_jit_call_nif",
            ),
            ("Table<int (char)>::find(int) const", "Table<int (char)>::find"),
            ("Job::operator()(int) const", "Job::operator()"),
            ("Job::operator()", "Job::operator()"),
            ("(anonymous namespace)", "(anonymous namespace)"),
            ("main", "main"),
            (")", ")"),
            ("a)", "a)"),
            (
                "<alloc::vec::Vec<u8> as core::fmt::Write>::write_str",
                "<alloc::vec::Vec<u8> as core::fmt::Write>::write_str",
            ),
        ] {
            assert_eq!(without_parameters(function), name);
        }
    }

    #[test]
    fn takes_the_teeth_out_of_names() {
        assert_eq!(clean("a\x1b[31m\n\u{202e}b\u{85}"), "a\u{fffd}[31m\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!(clean("größe::<T>"), "größe::<T>");
    }

    #[test]
    fn shortens_by_letters() {
        assert_eq!(shorten("größe", 5), "größe");
        assert_eq!(shorten("größer", 5), "größ…");
        assert_eq!(shorten("ab", 0), "…");
    }
}
