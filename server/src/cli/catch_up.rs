//! How a node that catches up with its region's log is shown: a bar on a terminal, log lines anywhere else.

use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::is_watched;
use crate::cluster::{self, CatchUp};

/// What the bar shows.
const TEMPLATE: &str = "catching up [{wide_bar}] {human_pos} of {human_len} groups, {msg}, {eta} left";

/// The way to show it here.
pub(super) fn shown() -> Box<cluster::Show<'static>> {
    if is_watched() { Box::new(as_bar()) } else { Box::new(cluster::as_lines()) }
}

fn as_bar() -> impl Fn(CatchUp<'_>) + Sync {
    let bar = OnceLock::new();
    move |CatchUp { following, is_over }| {
        let bar: &ProgressBar = bar.get_or_init(|| {
            let bar = ProgressBar::new(following.head);
            let style = ProgressStyle::with_template(TEMPLATE);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            // The time left counts from here.
            bar.set_position(following.applied);
            bar.reset_eta();
            bar
        });
        bar.set_length(following.head);
        bar.set_position(following.applied);
        bar.set_message(format!("{} commits/s", following.commits_per_s));
        if is_over {
            bar.finish_and_clear();
        }
    }
}
