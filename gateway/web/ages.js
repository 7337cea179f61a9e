// Ages of what is in view, kept by one timer that writes text and nothing else.

import { Component } from "/vendor/preact.js";
import { html } from "/html.js";
import { age } from "/words.js";

const TICK_MS = 1000;
const inView = new Set();
const watcher = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) {
      inView.add(target);
      tell(target);
    } else inView.delete(target);
  }
});

/** Keep the ages inside this element, for as long as it is in view. */
export function keep(node) {
  watcher.observe(node);
}

export function leave(node) {
  watcher.unobserve(node);
  inView.delete(node);
}

function tell(node) {
  for (const time of node.querySelectorAll("time[data-at]")) {
    const text = age(Number(time.dataset.at));
    if (time.firstChild.data !== text) time.firstChild.data = text;
  }
}

setInterval(() => {
  if (!document.hidden) inView.forEach(tell);
}, TICK_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) inView.forEach(tell);
});

/** How long ago it was. Rendered once per instant: after that its text is the timer's. */
export class Age extends Component {
  shouldComponentUpdate(next) {
    return next.at !== this.props.at;
  }

  render({ at }) {
    if (!Number.isFinite(at) || Number.isNaN(new Date(at).getTime())) return null;
    const then = new Date(at);
    return html`<time key=${at} data-at=${at} datetime=${then.toISOString()} title=${then.toLocaleString()}>${age(at)}</time>`;
  }
}

/** A base for what holds ages: its element, `this.node`, is kept while it is mounted. */
export class Aged extends Component {
  node = null;
  ref = (node) => {
    this.node = node;
  };

  componentDidMount() {
    if (this.node) keep(this.node);
  }

  componentWillUnmount() {
    if (this.node) leave(this.node);
  }
}
