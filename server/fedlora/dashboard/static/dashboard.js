/* Follows what changes: for each part of the page that the server says is of another state, the part is fetched and
   put in the place of the one that is shown. What was unfolded, scrolled or zoomed stays so. */
"use strict";

(() => {
  const { parts: partAddress, events: eventAddress } = document.body.dataset;
  const live = document.getElementById("live");
  const busy = new Set();
  const written = new WeakMap(); // By section, how it came: what draws in it changes it.
  let states = {}; // What the server said last of which state each part is.
  let source = null;

  const say = (words) => { if (live.textContent !== words) live.textContent = words; };

  /* Draw charts as they come into view: a page may have many. */
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { seen.unobserve(target); fedloraCharts.draw(target); }
    }
  }, { rootMargin: "300px" });

  const plots = (part) => part.querySelectorAll(".plot");

  /* Put new content in a part, section by section: one that says the same stays as it is. */
  function replace(part, html) {
    const fresh = new DOMParser().parseFromString(html, "text/html").body;
    const old = [...part.children];
    const next = [...fresh.children];
    next.forEach((section, at) => {
      const former = old[at];
      if (former && written.get(former) === section.outerHTML) return;
      const kept = document.adoptNode(section);
      written.set(kept, kept.outerHTML);
      if (!former) { part.append(kept); watch(kept); return; }
      const scrolled = [...former.querySelectorAll(".scrolls")].map((each) => [each.scrollLeft, each.scrollTop]);
      const open = [...former.querySelectorAll("details")].map((each) => each.open);
      plots(former).forEach((plot) => { seen.unobserve(plot); fedloraCharts.clear(plot); });
      former.replaceWith(kept);
      kept.querySelectorAll("details").forEach((each, i) => { each.open = Boolean(open[i]); });
      kept.querySelectorAll(".scrolls").forEach((each, i) => { [each.scrollLeft, each.scrollTop] = scrolled[i] || [0, 0]; });
      watch(kept);
    });
    old.slice(next.length).forEach((gone) => { plots(gone).forEach(fedloraCharts.clear); gone.remove(); });
  }

  const watch = (element) => plots(element).forEach((plot) => seen.observe(plot));

  async function refresh(part) {
    if (busy.has(part)) return;
    busy.add(part);
    try {
      let asked;
      do {
        asked = states[part.dataset.part];
        const response = await fetch(`${partAddress}?part=${part.dataset.part}`);
        if (!response.ok) { say((await response.text()).trim()); return; }
        replace(part, await response.text());
        part.dataset.state = response.headers.get("X-Part-State");
      } while (states[part.dataset.part] !== asked); // It changed once more while it was fetched.
    } catch {
      say("no answer from the server");
    } finally {
      busy.delete(part);
    }
  }

  function listen() {
    source = new EventSource(eventAddress);
    source.onopen = () => say("live");
    source.onmessage = ({ data }) => {
      say("live");
      states = JSON.parse(data);
      document.querySelectorAll(".part").forEach((part) => {
        if (states[part.dataset.part] !== part.dataset.state) refresh(part);
      });
    };
    source.onerror = () => {
      say("not live: no connection to the server");
      // What ended with an answer other than a stream is not tried again by the browser.
      if (source.readyState === EventSource.CLOSED) { source.close(); setTimeout(listen, 15000); }
    };
  }

  const back = document.createElement("p");
  back.className = "zoomed";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Show all rounds";
  button.addEventListener("click", () => fedloraCharts.zoom(null));
  back.append(button);
  document.addEventListener("zoomed", ({ detail }) => {
    if (detail) document.getElementById("rounds")?.before(back);
    else back.remove();
  });

  document.querySelectorAll(".part").forEach((part) => {
    [...part.children].forEach((section) => written.set(section, section.outerHTML));
    watch(part);
  });
  // A page that nobody looks at asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source?.close(); source = null; say(""); }
    else if (!source) listen();
  });
  if (!document.hidden) listen();
})();
