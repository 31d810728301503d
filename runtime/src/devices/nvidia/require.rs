//! What an image asks of the driver and the GPUs: `NVIDIA_REQUIRE_*`.
//!
//! A value such as `cuda>=12.4 brand=tesla,driver>=470,driver<471` has alternatives, separated by blanks, of conditions that must all hold, separated by
//! commas. A condition is `cuda`, `driver`, `arch` or `brand`, one of `=`, `!=`, `<`, `<=`, `>`, `>=`, and a version or a word. What
//! the files of the driver do not tell, the compute capability (`arch`), counts as met.

use std::cmp::Ordering;

use super::super::DeviceError;
use super::super::question::Question;

/// What conditions are about.
#[derive(Clone, Copy, Debug)]
struct Facts<'a> {
    /// The driver's version.
    driver: &'a str,
    /// The brands of the granted GPUs, one list for each.
    brands: &'a [&'static [&'static str]],
}

/// The newest CUDA that a branch of the driver has: the table of NVIDIA's CUDA release notes.
const CUDA: [(u32, (u32, u32)); 29] = [
    (367, (8, 0)),
    (384, (9, 0)),
    (387, (9, 1)),
    (396, (9, 2)),
    (410, (10, 0)),
    (418, (10, 1)),
    (440, (10, 2)),
    (450, (11, 0)),
    (455, (11, 1)),
    (460, (11, 2)),
    (465, (11, 3)),
    (470, (11, 4)),
    (495, (11, 5)),
    (510, (11, 6)),
    (515, (11, 7)),
    (520, (11, 8)),
    (525, (12, 0)),
    (530, (12, 1)),
    (535, (12, 2)),
    (545, (12, 3)),
    (550, (12, 4)),
    (555, (12, 5)),
    (560, (12, 6)),
    (565, (12, 7)),
    (570, (12, 8)),
    (575, (12, 9)),
    (580, (13, 0)),
    (585, (13, 0)),
    (590, (13, 1)),
];

/// The CUDA that a driver has; None for a branch that is newer than we know, which has more than any that we know.
pub(super) fn cuda(driver: &str) -> Option<String> {
    let branch: u32 = driver.split('.').next()?.parse().ok()?;
    if branch > CUDA[CUDA.len() - 1].0 {
        return None;
    }
    let known = CUDA.iter().rev().find(|(first, _)| branch >= *first);
    let (major, minor) = known.map_or((7, 5), |(_, version)| *version);
    Some(format!("{major}.{minor}"))
}

/// The first condition of the image that is not met.
///
/// # Errors
///
/// A condition that is not understood.
pub(super) fn unmet(
    question: &Question<'_>,
    version: &str,
    brands: &[&'static [&'static str]],
) -> Result<Option<DeviceError>, DeviceError> {
    let is_off = |value: String| !matches!(value.as_str(), "" | "0" | "false");
    if question
        .variable("NVIDIA_DISABLE_REQUIRE")
        .is_some_and(is_off)
    {
        return Ok(None);
    }
    let facts = Facts {
        driver: version,
        brands,
    };
    for name in (question.prefixed)("NVIDIA_REQUIRE_") {
        let Some(value) = question.variable(&name) else {
            continue;
        };
        let is_met = is_met(&value, facts).map_err(|part| DeviceError::Option {
            option: name.clone(),
            value: part,
            expected: "expected conditions such as `cuda>=12.4`",
        })?;
        if !is_met {
            let cuda =
                cuda(version).map_or_else(String::new, |cuda| format!(", which has CUDA {cuda}"));
            let first = value.split_ascii_whitespace().next().unwrap_or_default();
            return Ok(Some(DeviceError::Requirement {
                requirement: format!("`{first}` (`{name}`)"),
                found: format!("the driver is {version}{cuda}"),
            }));
        }
    }
    Ok(None)
}

/// Whether a value is met.
///
/// # Errors
///
/// The part that is not understood.
fn is_met(value: &str, facts: Facts<'_>) -> Result<bool, String> {
    let mut alternatives = value.split_ascii_whitespace().peekable();
    if alternatives.peek().is_none() {
        return Ok(true);
    }
    for alternative in alternatives {
        let mut all = true;
        for condition in alternative.split(',').filter(|it| !it.is_empty()) {
            all &= holds(condition, facts).ok_or_else(|| condition.to_owned())?;
        }
        if all {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a condition holds; None for one that is not understood.
fn holds(condition: &str, facts: Facts<'_>) -> Option<bool> {
    let start = condition.find(['<', '>', '=', '!'])?;
    let (subject, rest) = condition.split_at(start);
    let (operator, value) = rest.split_at(rest.find(|char| !"<>=!".contains(char))?);
    let fits = |order: Ordering| {
        Some(match operator {
            "=" | "==" => order == Ordering::Equal,
            "!=" => order != Ordering::Equal,
            "<" => order == Ordering::Less,
            "<=" => order != Ordering::Greater,
            ">" => order == Ordering::Greater,
            ">=" => order != Ordering::Less,
            _ => return None,
        })
    };
    match subject.to_ascii_lowercase().as_str() {
        "driver" => fits(compare(facts.driver, value)?),
        "cuda" => match cuda(facts.driver) {
            Some(cuda) => fits(compare(&cuda, value)?),
            None => fits(compare("9999", value)?),
        },
        "arch" => compare("0", value)
            .and_then(|_| fits(Ordering::Equal))
            .map(|_| true),
        "brand" => {
            let is_one =
                |brands: &&[&str]| brands.iter().any(|brand| brand.eq_ignore_ascii_case(value));
            match operator {
                "=" | "==" => Some(facts.brands.iter().all(&is_one)),
                "!=" => Some(!facts.brands.iter().any(is_one)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Compares versions, number by number; missing ones are 0. None for what is no version.
pub(super) fn compare(one: &str, other: &str) -> Option<Ordering> {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    let (mut one, mut other) = (numbers(one)?, numbers(other)?);
    let length = one.len().max(other.len());
    one.resize(length, 0);
    other.resize(length, 0);
    Some(one.cmp(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let data_center: &[&'static [&'static str]] = &[&["tesla", "nvidia"]];
        let desktop: &[&'static [&'static str]] = &[&["geforcertx", "geforce"]];
        for (value, driver, brands, expected) in [
            ("", "580.65.06", data_center, Some(true)),
            ("cuda>=13.0", "580.65.06", data_center, Some(true)),
            ("cuda>=13.1", "580.65.06", data_center, Some(false)),
            (
                "cuda>=12.8 brand=unknown,driver>=470,driver<471 brand=tesla,driver>=535,driver<536",
                "535.183.01",
                data_center,
                Some(true),
            ),
            (
                "cuda>=12.8 brand=tesla,driver>=470,driver<471",
                "535.183.01",
                data_center,
                Some(false),
            ),
            (
                "cuda>=12.8 brand=tesla,driver>=535,driver<536",
                "535.183.01",
                desktop,
                Some(false),
            ),
            ("brand!=geforce", "580", desktop, Some(false)),
            ("brand=GeForce", "580", desktop, Some(true)),
            ("arch>=9.0", "580", data_center, Some(true)),
            // A driver of the future has a CUDA of the future.
            ("cuda>=15.0", "700.1", data_center, Some(true)),
            ("driver=580.65", "580.65.0", data_center, Some(true)),
            ("cuda>9.0", "384.111", data_center, Some(false)),
            ("cuda", "580", data_center, None),
            ("cuda>=", "580", data_center, None),
            ("cuda>=x", "580", data_center, None),
            ("memory>=1", "580", data_center, None),
            ("brand<x", "580", data_center, None),
            ("cuda=<1", "580", data_center, None),
        ] {
            let facts = Facts { driver, brands };
            assert_eq!(is_met(value, facts).ok(), expected, "{value}");
        }
    }
}
