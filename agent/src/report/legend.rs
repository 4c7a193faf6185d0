//! What do the colours of a flame graph mean?

use std::fmt::Write as _;

use inferno::flamegraph::color::Color;

use crate::{
    attribute,
    erts::code,
    stack::{Frame, FrameKind},
};

/// Kinds of frames that have a colour of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// NIFs, drivers and the libraries they use.
    Native,
    /// The C library, the C++ runtime, allocators.
    Wrapper,
    /// The VM's executable.
    Vm,
    /// Erlang functions, with names or without.
    Erlang,
    /// An address in no mapping, or the end of an incomplete stack.
    Unknown,
    /// No code: the labels at the root.
    Branch,
}

const LEGEND: [(Code, &str); 6] = [
    (Code::Native, "NIF, driver, library"),
    (Code::Wrapper, "libc, C++ runtime, kernel"),
    (Code::Vm, "VM (beam.smp)"),
    (Code::Erlang, "Erlang (JIT)"),
    (Code::Unknown, "unknown, cut"),
    (Code::Branch, "owner"),
];

/// Height of the legend's line.
const HEIGHT: u32 = 30;

pub(super) fn code(frame: &Frame) -> Code {
    match frame.kind {
        FrameKind::Erlang | FrameKind::Jit => Code::Erlang,
        FrameKind::Unknown => Code::Unknown,
        FrameKind::Native if attribute::is_wrapper(frame) => Code::Wrapper,
        FrameKind::Native if frame.module.as_deref().is_some_and(code::is_emulator) => Code::Vm,
        FrameKind::Native => Code::Native,
    }
}

/// Orange, sky blue and bluish green of M. Okabe and K. Ito, *Color Universal Design* (2008), which all kinds of colour
/// vision tell apart, made lighter for black letters; the rest are greys and their yellow and reddish purple.
pub(super) fn color(code: Code) -> Color {
    let (r, g, b) = match code {
        Code::Native => (240, 170, 40),
        Code::Wrapper => (200, 200, 200),
        Code::Vm => (125, 190, 235),
        Code::Erlang => (90, 195, 160),
        Code::Unknown => (245, 235, 120),
        Code::Branch => (225, 180, 205),
    };
    Color { r, g, b }
}

/// Makes the picture higher by a line and writes the legend there. Where the SVG is not as inferno 0.12 makes it, it is
/// left as it is.
pub(super) fn add(svg: String) -> String {
    with_legend(&svg).unwrap_or(svg)
}

fn with_legend(svg: &str) -> Option<String> {
    let (_, behind) = svg.split_once("height=\"")?;
    let height: u32 = behind.split_once('"')?.0.parse().ok()?;
    let higher = height.checked_add(HEIGHT)?;
    let front = svg.strip_suffix("</svg>")?;
    // The picture, its view box and its background.
    let front = front.replacen(&format!("height=\"{height}\""), &format!("height=\"{higher}\""), 2).replacen(
        &format!(" {height}\" xmlns"),
        &format!(" {higher}\" xmlns"),
        1,
    );
    let top = higher.checked_sub(22)?;
    let baseline = higher.checked_sub(10)?;
    let mut legend = String::from("<g id=\"legend\">");
    let mut left = 10_usize;
    for (code, name) in LEGEND {
        let Color { r, g, b } = color(code);
        let text = left.checked_add(20)?;
        write!(legend, r#"<rect x="{left}" y="{top}" width="14" height="14" fill="rgb({r},{g},{b})"/>"#).ok()?;
        write!(legend, r#"<text x="{text}" y="{baseline}">{name}</text>"#).ok()?;
        // A letter of 12 pixels in a monospaced font is 7.2 wide.
        left = text.checked_add(name.len().checked_mul(8)?)?.checked_add(20)?;
    }
    Some(format!("{front}{legend}</g></svg>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_alone_what_it_does_not_know() {
        for svg in ["", "<svg/>", "<svg height=\"x\"></svg>", "<svg height=\"4294967295\"></svg>"] {
            assert_eq!(add(svg.to_owned()), svg);
        }
    }

    #[test]
    fn makes_the_picture_higher() {
        let svg = r#"<svg width="1200" height="100" viewBox="0 0 1200 100" xmlns=""><rect height="100"/></svg>"#;
        let with = add(svg.to_owned());
        let expected = r#"<svg width="1200" height="130" viewBox="0 0 1200 130" xmlns=""><rect height="130"/><g "#;
        assert!(with.starts_with(expected), "{with}");
        assert_eq!(with.matches("<text").count(), LEGEND.len());
    }
}
