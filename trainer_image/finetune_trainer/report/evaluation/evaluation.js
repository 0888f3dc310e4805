'use strict';
const section = document.getElementById('answers');
const rows = [...section.querySelectorAll('.row')].map((element) => ({
  element,
  text: element.textContent.toLowerCase(),
  outcomes: element.dataset.outcomes.split(' '),
}));
const search = section.querySelector('input[type=search]');
const more = section.querySelector('details.more-rows');
const status = section.querySelector('[role=status]');

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcome = section.querySelector('input[name=outcome]:checked').value;
  let shown = 0;
  for (const row of rows) {
    const fits = (!outcome || row.outcomes.includes(outcome)) && words.every((word) => row.text.includes(word));
    row.element.hidden = !fits;
    shown += fits;
  }
  if (more && (outcome || words.length)) more.open = true;
  status.textContent = shown === rows.length ? '' : `${shown} of ${rows.length} listed rows`;
}

section.querySelector('form').hidden = false;
section.querySelector('form').addEventListener('input', show);
section.querySelector('form').addEventListener('submit', (event) => event.preventDefault());
show();
