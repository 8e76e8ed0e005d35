"""Opens the page of examples/web in Chromium, which PySide6-WebEngine brings, without a screen, and draws on it.

    python tests/exchange/browser.py URL [PICTURE]

Prints as JSON what the page has at rest: the counts that were drawn, those of each layer, and the hashes of the logits,
its own and Python's. PICTURE: a screenshot. Ends with 77 if there is no such browser.
"""

import os
import sys

os.environ.update(QT_QPA_PLATFORM="offscreen", QT_QUICK_BACKEND="software")
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu --no-proxy-server"
try:
    from PySide6.QtCore import QTimer
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication
except ImportError as error:
    print(f"no Chromium: {error}", file=sys.stderr)
    sys.exit(77)

# A zero.
REPLAY = """
let found;
(async () => {
  const rest = async () => {
    while (!resting || !$("theirs").textContent) await new Promise((done) => setTimeout(done, 50));
  };
  await rest();
  $("theirs").textContent = "";
  $("clear").click();
  const { left, top } = $("drawing").getBoundingClientRect();
  const point = (x, y) => $("drawing").dispatchEvent(
    new PointerEvent("pointermove", { buttons: 1, clientX: left + x, clientY: top + y }));
  for (let t = 0; t < 6.3; t += 0.1) point(160 + 70 * Math.cos(t), 160 + 120 * Math.sin(t));
  await rest();
  found = JSON.stringify({ drawing: [...target], counts: net.counts.map((layer) => [...layer]),
                           ours: $("ours").textContent, theirs: $("theirs").textContent });
})();
"""


def main(url, picture=None):
    app = QApplication(sys.argv[:1])
    view = QWebEngineView()
    view.resize(660, 1080)

    def ask():
        view.page().runJavaScript("found", end)

    def end(found):
        if not found:
            QTimer.singleShot(100, ask)
            return
        print(found)
        if picture is not None:
            view.grab().save(picture)
        app.quit()

    view.loadFinished.connect(lambda: view.page().runJavaScript(REPLAY, lambda _: ask()))
    view.load(url)
    view.show()
    return app.exec()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
