//! A terminal session as a picture: SVG 1.1 with nothing but text and a frame, so that any browser shows it.

/// Width of a character of a monospace font of [`SIZE`], about; the text is stretched to it.
const WIDTH: usize = 8;
/// Size of the font, in pixels.
const SIZE: usize = 13;
/// Distance of lines, in pixels.
const LINE: usize = 19;
/// Space around the text, in pixels.
const MARGIN: usize = 16;
/// Height of the bar above it, in pixels.
const BAR: usize = 28;

/// Draws lines of a terminal below a title. Command lines, which begin with `$ `, stand out.
pub(crate) fn terminal(title: &str, text: &str) -> String {
    let lines: Vec<&str> = text.trim_matches('\n').lines().collect();
    let columns = lines.iter().map(|line| line.chars().count()).max();
    let width = columns.unwrap_or(0) * WIDTH + 2 * MARGIN;
    let height = BAR + lines.len() * LINE + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"{title}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#1d2129\"/>\n\
         <text x=\"{}\" y=\"19\" fill=\"#8b949e\" text-anchor=\"middle\" font-family=\"sans-serif\" font-size=\"12\">{title}</text>\n\
         <g font-family=\"ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace\" font-size=\"{SIZE}\" xml:space=\"preserve\">\n",
        width / 2,
        title = escaped(title),
    );
    for (number, line) in lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
    {
        let colour = if line.starts_with("$ ") {
            "#7ee787"
        } else {
            "#e6edf3"
        };
        svg.push_str(&format!(
            "<text x=\"{MARGIN}\" y=\"{}\" fill=\"{colour}\" textLength=\"{}\">{}</text>\n",
            BAR + MARGIN + number * LINE,
            line.chars().count() * WIDTH,
            escaped(line)
        ));
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// Text of an XML document.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_places_and_nothing_is_markup() {
        let svg = terminal("a & b", "\n$ cista <x>\n\n  done\n");
        assert!(svg.contains("aria-label=\"a &amp; b\""));
        assert!(
            svg.contains("y=\"44\" fill=\"#7ee787\" textLength=\"88\">$ cista &lt;x&gt;</text>")
        );
        assert!(svg.contains("y=\"82\" fill=\"#e6edf3\" textLength=\"48\">  done</text>"));
        assert_eq!(svg.matches("<text ").count(), 3);
    }
}
