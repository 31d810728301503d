//! `cista config`: show the effective settings, and where each comes from

use std::borrow::Cow;
use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Failure, Outcome};
use crate::config::enroot::Enroot;
use crate::config::settings::{self, Kind, Setting};
use crate::config::sources::{Found, Origin};
use crate::ui;

/// Show the effective settings, and where each comes from
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As JSON, with what each setting does; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
    /// Only these settings, such as `limits.max_processors` or `CISTA_MAX_PROCESSORS`
    #[arg(value_name = "SETTING")]
    names: Vec<String>,
}

/// A setting with its value.
struct Line {
    setting: &'static Setting,
    /// None where there is none, for instance no proxy.
    value: Option<String>,
    origin: Origin,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    for place in context
        .config
        .sources
        .enroot()
        .into_iter()
        .flat_map(Enroot::unknown)
    {
        ui::warning(format_args!("{place}: unknown setting, ignored"));
    }
    let mut lines = Vec::new();
    for setting in chosen(&args.names)? {
        lines.push(line(setting, context)?);
    }
    if args.json {
        let list: Vec<Entry<'_>> = lines.iter().map(entry).collect();
        ui::data(serde_json::to_string_pretty(&list)?);
        return Ok(ExitCode::SUCCESS);
    }
    // A single setting is for scripts: its value alone.
    if let ([_], [only]) = (&args.names[..], &lines[..]) {
        ui::data(only.value.as_deref().unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    let mut section = "";
    for line in &lines {
        if line.setting.section != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            section = line.setting.section;
            ui::data(format_args!("{gap}[{section}]"));
        }
        let value = match &line.value {
            Some(value) => value.clone(),
            None => format!("({})", line.setting.default),
        };
        let assignment = format!("{} = {value}", line.setting.key);
        ui::data(format_args!("{assignment:<48} # {}", line.origin));
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Setting>, Failure> {
    if names.is_empty() {
        return Ok(settings::ALL.to_vec());
    }
    let find = |name: &String| {
        let found = settings::ALL.iter().copied().find(|setting| {
            setting.variables.contains(&name.as_str())
                || name
                    .split_once('.')
                    .is_some_and(|(section, key)| (setting.section, setting.key) == (section, key))
        });
        found.ok_or_else(|| {
            Failure::new(std::io::Error::other(format!(
                "there is no setting `{name}`"
            )))
            .with_hint("`cista config` shows them all")
        })
    };
    names.iter().map(find).collect()
}

fn line(setting: &'static Setting, context: &Context) -> Result<Line, Failure> {
    let sources = &context.config.sources;
    let found = sources.find(setting);
    if let Some(Found { value, origin }) = found {
        // The check that the command that uses it would make.
        sources.parsed(setting, |text| setting.kind.accepts(text).then_some(()))?;
        let value = match setting.kind {
            Kind::Secret => "(not shown)".to_owned(),
            _ => without_password(&value.to_string_lossy()),
        };
        return Ok(Line {
            setting,
            value: Some(value),
            origin,
        });
    }
    let value = match setting.kind {
        Kind::Directory { .. } | Kind::RuntimeDirectory => {
            Some(sources.directory(setting)?.display().to_string())
        }
        // A default in words is no value.
        kind => Some(setting.default)
            .filter(|text| kind.accepts(text) && kind != Kind::Text && kind != Kind::Secret)
            .filter(|_| !matches!(kind, Kind::Path | Kind::Paths))
            .map(str::to_owned),
    };
    Ok(Line {
        setting,
        value,
        origin: Origin::Default,
    })
}

/// A proxy's URL without the password that it may hold.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:…@{host}")
        }
        None => text.to_owned(),
    }
}

/// A setting, as `--json` shows it. Fields are added but never renamed or removed.
#[derive(Serialize)]
struct Entry<'a> {
    section: &'static str,
    key: &'static str,
    value: Option<&'a str>,
    origin: OriginEntry<'a>,
    variables: &'static [&'static str],
    enroot: Option<&'static str>,
    default: &'static str,
    expected: String,
    help: &'static str,
}

/// Where a value comes from.
#[derive(Default, Serialize)]
struct OriginEntry<'a> {
    kind: &'static str,
    variable: Option<&'static str>,
    file: Option<Cow<'a, str>>,
    line: Option<usize>,
}

fn entry(line: &Line) -> Entry<'_> {
    let setting = line.setting;
    let origin = match &line.origin {
        Origin::Variable(name) => OriginEntry {
            kind: "variable",
            variable: Some(name),
            ..OriginEntry::default()
        },
        Origin::File(place) => OriginEntry {
            kind: "file",
            file: Some(place.path.to_string_lossy()),
            line: Some(place.line),
            ..OriginEntry::default()
        },
        Origin::Default => OriginEntry {
            kind: "default",
            ..OriginEntry::default()
        },
    };
    Entry {
        section: setting.section,
        key: setting.key,
        value: line.value.as_deref(),
        origin,
        variables: setting.variables,
        enroot: setting.enroot,
        default: setting.default,
        expected: setting.kind.expected(),
        help: setting.help,
    }
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn passwords_of_proxies_are_not_shown() {
        for (text, expected) in [
            ("http://me:hunter2@proxy:3128", "http://me:…@proxy:3128"),
            ("http://me:a@b@proxy", "http://me:…@proxy"),
            ("http://proxy:3128", "http://proxy:3128"),
            ("/some/path", "/some/path"),
        ] {
            assert_eq!(without_password(text), expected);
        }
    }
}
