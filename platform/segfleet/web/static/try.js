// The form of a picture: dropping one, seeing it before it is sent, and no upload that would be refused.

const picture = document.getElementById("picture");

if (picture) {
  const drop = picture.closest(".drop");
  const preview = drop.querySelector(".preview");

  const show = () => {
    const [file] = picture.files;
    const most = Number(picture.dataset.mostBytes);
    let wrong = "";
    if (file && !["image/jpeg", "image/png"].includes(file.type)) wrong = "Choose a JPEG or a PNG.";
    if (file && file.size > most) wrong = `Choose a picture of at most ${most / 2 ** 20} MiB.`;
    picture.setCustomValidity(wrong);
    URL.revokeObjectURL(preview.src);
    preview.hidden = !file || wrong !== "";
    if (!preview.hidden) preview.src = URL.createObjectURL(file);
    if (wrong) picture.reportValidity();
  };

  picture.addEventListener("change", show);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    picture.files = event.dataTransfer.files;
    show();
  });
  picture.form.addEventListener("submit", () => {
    const button = picture.form.querySelector("button.primary");
    button.textContent = "Sending…";
    button.disabled = true;
  });
  // Who comes back finds the form as it was.
  addEventListener("pageshow", () => {
    const button = picture.form.querySelector("button.primary");
    button.textContent = "Try it";
    button.disabled = false;
  });
}
