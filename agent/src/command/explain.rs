//! `beamscope explain`: where does each resident byte of a node belong?

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, bail};

use super::ending::{Ending, ending};
use crate::{
    cli::{Common, ExplainArgs, ExplainDepth, ReportFormat},
    erts::alloc::{Depth, Effort},
    explain::{self, model::Explanation},
    image::Image,
    judge::{self, Case},
    look,
    output::Output,
    recording::{Look, Recording},
    report::{
        Options, markdown,
        memory::{json, text},
    },
    stored,
    target::{core_dump, find, view},
};

/// What every ELF file begins with.
const ELF: &[u8] = b"\x7fELF";

pub(super) fn run(args: &ExplainArgs, common: Common) -> anyhow::Result<Ending> {
    let ExplainArgs { target, writing, save_image, fail_on, force, .. } = args;
    // A bad path must be known before the node is looked at.
    let image = save_image.as_deref().map(|path| Output::create(path, *force)).transpose()?;
    let begin = Instant::now();
    let file = target.as_deref().filter(|target| is_file(target)).map(Path::new);
    let explanation = match (file, image) {
        (Some(_), Some(_)) => bail!("--save-image keeps the memory of a running node, not of a file"),
        (Some(path), None) => of_file(path, args)?,
        (None, None) => {
            let budget = (args.depth == ExplainDepth::Auto).then_some(args.time_budget);
            look::at(&find::resolve(target.as_deref())?, args.depth.into(), budget)?
        }
        (None, Some(output)) => {
            let image = look::keep(&find::resolve(target.as_deref())?, args.depth.into())?;
            output.commit(|into| Ok(stored::write(&image, into)?))?;
            of_image(&image)
        }
    };
    if !common.quiet {
        anstream::eprintln!("looked for {:.2} s", begin.elapsed().as_secs_f64());
    }
    let look = Look { at: 0.0, explanation };
    let (explanation, verdicts) = (&look.explanation, judge::judge(&Case::of_look(&look)));
    let rendered = match writing.format {
        ReportFormat::Json => json::render(explanation, &verdicts),
        ReportFormat::Markdown => markdown::of_look(explanation, &verdicts, writing.options(Options::default().top)),
        ReportFormat::Text => {
            let options = writing.options(text::ROWS);
            text::render(explanation, &verdicts, options)
        }
    };
    writing.write(&rendered, *force, common)?;
    Ok(ending(fail_on, &verdicts))
}

/// A file is meant, and not a node: a number is a pid, whatever lies in the folder.
fn is_file(target: &str) -> bool {
    target.parse::<u32>().is_err() && (target.contains('/') || Path::new(target).is_file())
}

fn of_image(image: &Image) -> Explanation {
    explain::explain(&image.view, &image.memory, &Effort { depth: image.depth, threads: 1, is_over: &|| false })
}

fn of_file(path: &Path, args: &ExplainArgs) -> anyhow::Result<Explanation> {
    let name = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let mut begin = Vec::new();
    file.by_ref().take(64).read_to_end(&mut begin).with_context(|| format!("cannot read {name}"))?;
    file.rewind().with_context(|| format!("cannot read {name}"))?;
    if stored::is_a::<Recording>(&begin) {
        bail!("{name} is a recording; `beamscope report {name}` shows it");
    }
    if begin.starts_with(ELF) {
        return of_core(file, path, args);
    }
    let image: Image = stored::read(file).with_context(|| format!("cannot read {name}"))?;
    Ok(of_image(&image))
}

fn of_core(file: File, path: &Path, args: &ExplainArgs) -> anyhow::Result<Explanation> {
    let opened = core_dump::open(file, args.executable.as_deref());
    let (view::Viewed { view, .. }, memory) = opened.with_context(|| format!("cannot explain {}", path.display()))?;
    Ok(explain::explain(&view, &memory, &Effort { depth: args.depth.into(), threads: 1, is_over: &|| false }))
}

impl From<ExplainDepth> for Depth {
    fn from(depth: ExplainDepth) -> Self {
        match depth {
            ExplainDepth::Auto | ExplainDepth::Full => Self::Full,
            ExplainDepth::Headers => Self::Headers,
            ExplainDepth::Counters => Self::Counters,
        }
    }
}
