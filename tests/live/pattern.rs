//! Does a stack have the frames that are expected of it, from the leaf to the root?
//!
//! A pattern has a line for each frame: `FILE!FUNCTION` for a native one, `MODULE:FUNCTION/ARITY` for an Erlang one. In
//! both parts, `*` stands for any text. The line may begin with the number of equal frames: `3`, or `?`, `*` and `+` as in
//! regular expressions; and it may end in `@` and the place: for an Erlang frame, a mark of which the node knows the line
//! (`tests/nodes/stacks.hrl`); for a native frame, text that stands in that line of the source. The line `...` is any
//! number of frames of any kind.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::agent::in_tests;

/// One frame of a report, by what a pattern can say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// `native`, `erlang`, `jit` or `unknown`.
    pub(crate) kind: String,
    pub(crate) module: String,
    pub(crate) function: String,
    /// Without its folder.
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u64>,
    /// The report has only the offset of the function, whose file was stripped; then it has no line either.
    pub(crate) by_offset: bool,
}

impl Frame {
    fn text(&self) -> String {
        let Self { kind, module, function, file, line, by_offset } = self;
        let between = match kind.as_str() {
            "native" => "!",
            "erlang" => ":",
            _ => "?",
        };
        let file = file.as_deref().map(|file| format!(" {file}")).unwrap_or_default();
        let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
        let by_offset = if *by_offset { " by its offset" } else { "" };
        format!("{module}{between}{function}{file}{line}{by_offset}")
    }
}

/// Lines of the marks of a node.
pub(crate) type Marks = BTreeMap<String, u64>;

struct Step<'a> {
    least: usize,
    most: usize,
    kind: &'static str,
    module: &'a str,
    function: &'a str,
    place: Option<&'a str>,
}

impl<'a> Step<'a> {
    fn parse(line: &'a str) -> Self {
        if line == "..." {
            return Self { least: 0, most: usize::MAX, kind: "", module: "*", function: "*", place: None };
        }
        let (count, frame) = match line.split_once(' ') {
            Some((count, frame)) if count.len() <= 2 => (count, frame),
            _ => ("1", line),
        };
        let (least, most) = match count {
            "?" => (0, 1),
            "*" => (0, usize::MAX),
            "+" => (1, usize::MAX),
            number => number.parse().map(|number| (number, number)).expect("a number of frames"),
        };
        let (frame, place) = frame.split_once('@').map_or((frame, None), |(frame, place)| (frame, Some(place)));
        let native = frame.split_once('!').map(|parts| ("native", parts));
        let parts = native.or_else(|| frame.split_once(':').map(|parts| ("erlang", parts)));
        let (kind, (module, function)) = parts.unwrap_or_else(|| panic!("neither FILE!FUNCTION nor M:F/A: {line}"));
        Self { least, most, kind, module, function, place }
    }

    fn fits(&self, frame: &Frame, marks: &Marks) -> bool {
        let named = fits(self.module, &frame.module) && fits(self.function, &frame.function);
        (self.kind.is_empty() || self.kind == frame.kind)
            && named
            && self.place.is_none_or(|place| is_at(self.kind, place, frame, marks))
    }
}

fn is_at(kind: &str, place: &str, frame: &Frame, marks: &Marks) -> bool {
    let (Some(file), Some(line)) = (&frame.file, frame.line) else { return frame.by_offset };
    if kind == "erlang" {
        // Elixir's modules are shown without what their atoms and files begin with.
        let of_module = file.strip_prefix("Elixir.").unwrap_or(file).strip_suffix(".erl") == Some(&frame.module);
        return of_module && marks.get(place) == Some(&line);
    }
    let Ok(source) = std::fs::read_to_string(in_tests(&format!("nodes/{file}"))) else { return false };
    let number = usize::try_from(line).ok().and_then(|line| line.checked_sub(1));
    number.and_then(|number| source.lines().nth(number)).is_some_and(|text| text.contains(place))
}

/// Whether `text` is what `pattern` says.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    text.strip_prefix(before).is_some_and(|rest| {
        let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
        ends.into_iter().any(|at| fits(after, &rest[at..]))
    })
}

/// Says where the frames leave the pattern, if they do.
pub(crate) fn mismatch(pattern: &str, frames: &[Frame], marks: &Marks) -> Option<String> {
    let lines: Vec<&str> = pattern.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let steps: Vec<Step<'_>> = lines.iter().map(|line| Step::parse(line)).collect();
    let mut furthest = (0, 0);
    if follow(&steps, 0, frames, 0, marks, &mut furthest) {
        return None;
    }
    let (frame_reached, step_reached) = furthest;
    let mut text = String::from("  expected:\n");
    for (index, (line, step)) in lines.iter().zip(&steps).enumerate() {
        let known = step.place.filter(|_| step.kind == "erlang").map(|mark| match marks.get(mark) {
            Some(line) => format!(" (line {line})"),
            None => " (never passed)".to_owned(),
        });
        let pointer = if index == step_reached { "->" } else { "  " };
        writeln!(text, "  {pointer}  {line}{}", known.unwrap_or_default()).expect("a string");
    }
    text.push_str("  found:\n");
    for (index, frame) in frames.iter().enumerate() {
        let pointer = if index == frame_reached { "->" } else { "  " };
        writeln!(text, "  {pointer}  {}", frame.text()).expect("a string");
    }
    if frame_reached >= frames.len() {
        text.push_str("  ->  (end)\n");
    }
    Some(text)
}

/// Whether the steps from `step` on describe the frames from `at` on; the furthest frame and step that were reached.
fn follow(
    steps: &[Step<'_>],
    step: usize,
    frames: &[Frame],
    at: usize,
    marks: &Marks,
    furthest: &mut (usize, usize),
) -> bool {
    *furthest = (*furthest).max((at, step));
    let Some(expected) = steps.get(step) else { return at == frames.len() };
    let mut taken = 0;
    while taken < expected.least {
        if !frames.get(at + taken).is_some_and(|frame| expected.fits(frame, marks)) {
            *furthest = (*furthest).max((at + taken, step));
            return false;
        }
        taken += 1;
    }
    loop {
        if follow(steps, step + 1, frames, at + taken, marks, furthest) {
            return true;
        }
        let one_more = taken < expected.most && frames.get(at + taken).is_some_and(|frame| expected.fits(frame, marks));
        if !one_more {
            return false;
        }
        taken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Frame {
        let (name, line) = text.split_once('@').map_or((text, None), |(name, line)| (name, line.parse().ok()));
        let (kind, (module, function)) = match name.split_once('!') {
            Some(parts) => ("native", parts),
            None => ("erlang", name.split_once(':').expect("a frame")),
        };
        let file = line.map(|_| format!("{module}.erl"));
        Frame {
            kind: kind.to_owned(),
            module: module.to_owned(),
            function: function.to_owned(),
            file,
            line,
            by_offset: false,
        }
    }

    fn check(pattern: &str, frames: &[&str], expected: bool) {
        let frames: Vec<_> = frames.iter().map(|text| frame(text)).collect();
        let marks = Marks::from([("here".to_owned(), 7)]);
        let mismatch = mismatch(&pattern.replace(", ", "\n"), &frames, &marks);
        assert_eq!(mismatch.is_none(), expected, "{pattern}: {mismatch:?}");
    }

    #[test]
    fn each_frame_has_its_line() {
        check("a!f, m:f/1", &["a!f", "m:f/1"], true);
        check("a!f, m:f/1", &["a!f"], false);
        check("a!f, m:f/1", &["a!f", "m:f/1", "m:g/1"], false);
        check("a!f, m:f/1", &["m:f/1", "a!f"], false);
        check("a!f", &["a:f"], false);
    }

    #[test]
    fn frames_are_counted() {
        check("2 a!f, a!g", &["a!f", "a!f", "a!g"], true);
        check("2 a!f, a!g", &["a!f", "a!g"], false);
        check("2 a!f, a!g", &["a!f", "a!f", "a!f", "a!g"], false);
        check("+ a!*, a!g", &["a!f", "a!g"], true);
        check("+ a!*, a!g", &["a!g"], false);
        check("* a!*, ? b!f, m:f/0", &["m:f/0"], true);
        check("..., m:f/0", &["a!f", "m:g/0", "m:f/0"], true);
    }

    #[test]
    fn a_mark_is_a_line() {
        check("m:f/1@here", &["m:f/1@7"], true);
        check("m:f/1@here", &["m:f/1@8"], false);
        check("m:f/1@here", &["m:f/1"], false);
        check("m:f/1@there", &["m:f/1@7"], false);
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("f*", "f(int)", true),
            ("*::f", "a::b::f", true),
            ("-f/1-*-/*", "-f/1-lc$^0/1-0-/2", true),
            ("f", "g", false),
            ("f*g", "fg", true),
            ("f*g", "fgh", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }
}
