//! Which stacks hold the memory, as a flame graph in SVG?
//!
//! The first level says whose the memory is (native code's, the VM's, unknown), under `native` the second one says
//! which library asked for it; then come the frames from the root to the allocation.

use std::collections::BTreeMap;

use inferno::flamegraph::{
    self, Palette, TextTruncateDirection,
    color::{BackgroundColor, Color, PaletteMap},
};
use thiserror::Error;

use super::{
    RankedSite, Report, header, label,
    legend::{self, Code},
    unit::{self, Units},
};
use crate::{
    attribute::{Class, Evidence},
    recording::Site,
    stack::StackEnd,
};

/// Letters of the subtitle at most: what 1200 pixels take.
const SUBTITLE: usize = 150;

/// Which bytes are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// Allocated and not freed by the end.
    #[default]
    Outstanding,
    /// Allocated.
    Allocated,
    /// Allocated and freed.
    Temporary,
}

/// Why there is no graph.
#[derive(Debug, Error)]
pub enum FlameError {
    /// Every site has zero bytes of the measure.
    #[error("nothing to draw: the recording has no {} bytes in {sites} sites", measure.name())]
    Empty {
        /// The measure.
        measure: Measure,
        /// Sites in the recording.
        sites: usize,
    },
    /// inferno could not make it.
    #[error("the flame graph could not be drawn")]
    Draw(#[source] std::io::Error),
}

impl Measure {
    /// Its name in titles and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outstanding => "outstanding",
            Self::Allocated => "allocated",
            Self::Temporary => "temporary",
        }
    }

    fn of(self, site: &Site) -> u64 {
        match self {
            Self::Outstanding => site.outstanding_bytes(),
            Self::Allocated => site.allocated_bytes,
            Self::Temporary => site.freed_bytes,
        }
    }
}

/// Renders the graph.
pub fn render(report: &Report<'_>, measure: Measure) -> Result<String, FlameError> {
    let mut palette = PaletteMap::default();
    // The frame `all`, which inferno adds.
    palette.insert("", legend::color(Code::Branch));
    let mut stacks: BTreeMap<(u8, Vec<String>), u64> = BTreeMap::new();
    for ranked in &report.sites {
        let bytes = measure.of(ranked.site);
        if bytes > 0 {
            let total = stacks.entry((branch(ranked), names(ranked, &mut palette))).or_default();
            *total = total.saturating_add(bytes);
        }
    }
    if stacks.is_empty() {
        return Err(FlameError::Empty { measure, sites: report.sites.len() });
    }
    let mut options = options(report, measure);
    options.palette_map = Some(&mut palette);
    // Sorted here by frames, since a sort of lines sets `f` and `f (inlined)` apart from `f;g`; as a flame chart, inferno
    // keeps the order, and turns it round.
    let lines: Vec<_> = stacks.iter().rev().map(|((_, names), bytes)| format!("{} {bytes}", names.join(";"))).collect();
    options.flame_chart = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg).map_err(FlameError::Draw)?;
    Ok(legend::add(String::from_utf8_lossy(&svg).into_owned()))
}

fn options<'a>(report: &Report<'_>, measure: Measure) -> flamegraph::Options<'a> {
    let recording = report.recording;
    let mut options = flamegraph::Options::default();
    options.title = format!("memory {}: {}", measure.name(), header::node_name(&recording.node));
    options.subtitle = Some(subtitle(report, measure));
    options.count_name = "bytes".into();
    options.name_type = "Frame:".into();
    options.colors = Palette::default();
    options.bgcolors = Some(BackgroundColor::Flat(Color { r: 255, g: 255, b: 255 }));
    options.font_type = "monospace".into();
    options.frame_height = 18;
    options.text_truncate_direction = TextTruncateDirection::Right;
    options
}

fn subtitle(report: &Report<'_>, measure: Measure) -> String {
    let recording = report.recording;
    let sum = |class: fn(&Class) -> bool| {
        let sites = report.sites.iter().filter(|ranked| class(&ranked.attribution.class));
        Units::Iec.bytes(sites.fold(0_u64, |sum, ranked| sum.saturating_add(measure.of(ranked.site))))
    };
    let native = sum(|class| matches!(class, Class::Native { .. }));
    let vm = sum(|class| *class == Class::Vm);
    let unknown = match report.unknown.sites {
        0 => String::new(),
        _ => format!(", unknown {}", sum(|class| *class == Class::Unknown)),
    };
    let losses: Vec<_> = recording
        .losses
        .iter()
        .map(|(name, number)| format!("{} {}", label::clean(name), unit::count(*number)))
        .collect();
    let losses = if losses.is_empty() { "no loss".into() } else { format!("losses: {}", losses.join(", ")) };
    let span = unit::seconds(recording.interval.seconds);
    label::shorten(&format!("native {native}, VM {vm}{unknown}, recorded for {span}; {losses}"), SUBTITLE)
}

/// Native code first: that is what the graph is looked at for.
fn branch(ranked: &RankedSite<'_>) -> u8 {
    match ranked.attribution.class {
        Class::Native { .. } => 0,
        Class::Vm => 1,
        Class::Unknown => 2,
    }
}

/// The names of a site's frames from the root on, each entered into the palette.
fn names(ranked: &RankedSite<'_>, palette: &mut PaletteMap) -> Vec<String> {
    let mut names = Vec::new();
    let mut push = |name: &str, code: Code| {
        let name = escape(name);
        if names.last() != Some(&name) || code != Code::Erlang {
            palette.insert(&name, legend::color(code));
            names.push(name);
        }
    };
    match &ranked.attribution.class {
        Class::Native { library } => {
            push("native", Code::Branch);
            push(&format!("{library}:"), Code::Branch);
        }
        Class::Vm => {
            push("VM", Code::Branch);
            let allocator = ranked.attribution.evidence.iter().find_map(|evidence| match evidence {
                Evidence::Carriers { allocators, .. } => allocators.first(),
                _ => None,
            });
            push(
                &allocator.map_or_else(|| "no carriers".to_owned(), |name| format!("carriers of {name}")),
                Code::Branch,
            );
        }
        Class::Unknown => push("unknown", Code::Branch),
    }
    match ranked.site.stack.end {
        StackEnd::Root | StackEnd::Jit | StackEnd::Erlang => {}
        StackEnd::Truncated | StackEnd::NoUnwindInformation => push("(stack is cut here)", Code::Unknown),
        // Without a sample, the call's return address is all that is known.
        StackEnd::Missing if ranked.site.stack.frames.len() > 1 => push("(callers not captured)", Code::Unknown),
        StackEnd::Missing => push("(no stack)", Code::Unknown),
    }
    for frame in ranked.site.stack.frames.iter().rev() {
        let mut name = label::function_and_module(frame);
        if frame.inlined {
            name.push_str(" (inlined)");
        }
        push(&name, legend::code(frame));
    }
    names
}

/// A name that inferno takes as one frame: `;` separates frames, a number behind a space is taken for a count, and
/// `_[k]` at the end for a mark that is not shown.
fn escape(name: &str) -> String {
    let name = label::clean(name).trim().replace(';', ":").replace("_[", "_\u{200b}[");
    match name.rsplit_once(' ') {
        Some((front, number)) if number.chars().all(|letter| letter.is_ascii_digit() || letter == '.') => {
            format!("{front}\u{a0}{number}")
        }
        _ if name.is_empty() => "?".into(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{recording::Recording, sample};

    fn svg(recording: &Recording, measure: Measure) -> String {
        render(&Report::new(recording), measure).expect("there are bytes")
    }

    fn titles(svg: &str) -> Vec<&str> {
        svg.split("<title>").skip(1).filter_map(|rest| rest.split("</title>").next()).collect()
    }

    #[test]
    fn has_a_branch_for_each_owner_and_names_the_library() {
        let svg = svg(&sample::recording(), Measure::Outstanding);
        let titles = titles(&svg);
        for expected in [
            "native (603,990,016",
            "leaky.so: (536,870,912",
            "leak_nif [leaky.so] (536,870,912",
            "keep [leaky.so] (inlined) (536,870,912",
            "VM (50,331,648",
            "unknown (1,048,576",
            "MyApp.Worker.run/2 (536,870,912",
            "Erlang code [JIT] (67,108,864",
        ] {
            assert!(titles.iter().any(|title| title.starts_with(expected)), "{expected}: {titles:#?}");
        }
    }

    #[test]
    fn draws_the_measure_that_is_asked_for() {
        let all = |measure| {
            let svg = svg(&sample::recording(), measure);
            let all = titles(&svg).iter().find(|title| title.starts_with("all (")).map(ToString::to_string);
            all.expect("the root")
        };
        let sum = |measure: Measure| sample::recording().sites.iter().map(|site| measure.of(site)).sum::<u64>();
        for measure in [Measure::Outstanding, Measure::Allocated, Measure::Temporary] {
            assert_eq!(all(measure), format!("all ({} bytes, 100%)", unit::count(sum(measure))));
        }
    }

    #[test]
    fn the_same_recording_gives_the_same_bytes() {
        let recording = sample::recording();
        let mut reversed = recording.clone();
        reversed.sites.reverse();
        for carrier in &mut reversed.carriers {
            carrier.site = recording.sites.len() - 1 - carrier.site;
        }
        assert_eq!(svg(&recording, Measure::Allocated), svg(&reversed, Measure::Allocated));
    }

    #[test]
    fn an_empty_graph_is_an_error_with_a_reason() {
        let recording = Recording { sites: Vec::new(), ..sample::recording() };
        let error = render(&Report::new(&recording), Measure::Temporary).expect_err("there is nothing to draw");
        assert_eq!(error.to_string(), "nothing to draw: the recording has no temporary bytes in 0 sites");
    }

    #[test]
    fn names_cannot_break_out_of_their_frame() {
        for name in
            ["</title><script>alert(1)</script>", "a;b 5", "f 12", "f 1.5", "  ", "#  x", "a\n b 3", "x_[k]", "-->"]
        {
            let mut recording = sample::recording();
            for frame in recording.sites.iter_mut().flat_map(|site| &mut site.stack.frames) {
                frame.function = Some(name.into());
                frame.module = None;
            }
            recording.node.name = Some(name.into());
            recording.losses.insert(name.into(), 1);
            let svg = svg(&recording, Measure::Outstanding);
            assert_eq!(svg.matches("<script").count(), 1, "only inferno's: {name:?}");
            let all = format!("all ({} bytes, 100%)", unit::count(655_370_240));
            assert!(titles(&svg).contains(&all.as_str()), "{name:?}: {:?}", titles(&svg));
        }
    }

    #[test]
    fn a_frame_is_one_box_though_longer_names_begin_like_it() {
        let mut recording = sample::recording();
        let template = recording.sites[4].clone();
        recording.carriers.clear();
        recording.sites = ["a", "a [x]", "a;"]
            .iter()
            .map(|leaf| {
                let mut site = template.clone();
                site.stack.frames = vec![
                    sample::frame("libc.so.6", "malloc", None),
                    sample::frame("n.so", leaf, None),
                    sample::frame("n.so", "root", None),
                ];
                site
            })
            .collect();
        let svg = svg(&recording, Measure::Allocated);
        assert_eq!(titles(&svg).iter().filter(|title| title.starts_with("root [n.so]")).count(), 1);
    }
}
